"""ModelHost: loads models when they are asked for, keeps them for a while, and switches.

All state belongs to the event loop; what blocks runs in threads. A model is loaded once however
many ask for it. When as many are loaded as may be, the one that was asked for least recently goes:
it takes no new requests, ends those it has, and is closed before the next one is opened. New
requests for it wait for their turn, so that two models in demand take turns and neither starves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sllm.core.errors import EngineClosedError, LibraryError, QueueFullError
from sllm.gateway.keep_alive import parse_keep_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm.backends.engine import Engine, EngineState
    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings
    from sllm.library.model import Model
    from sllm.library.models import Library
    from sllm.text.model import TextModel

RETRY_AFTER_S = 5.0
_ENDING = "the server is ending"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that can be asked."""

    model: Model
    text: TextModel
    engine: Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A loaded model and when it will be unloaded; None: never."""

    loaded: Loaded
    expires_at: datetime | None


class Lease:
    """A loaded model for the time of a request. Whoever takes it releases it."""

    def __init__(self, loaded: Loaded, load_s: float, release: Callable[[], None]) -> None:
        """load_s: how long the request waited for the model."""
        self.loaded = loaded
        self.load_s = load_s
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give it back: once no one has one, the time to unloading begins. Twice does no harm."""
        release, self._release = self._release, None
        if release is not None:
            release()


class _Entry:
    """A model that is loading or loaded, or retired: on its way out, for those who have it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.opening: asyncio.Task[Loaded]
        self.keep_alive_s = math.inf
        self.used_at_s = time.monotonic()
        self.users = 0
        self.idle = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def loaded(self) -> Loaded | None:
        """Return what was opened, once it was."""
        task = self.opening
        failed = not task.done() or task.cancelled() or task.exception() is not None
        return None if failed else task.result()

    @property
    def expires_in_s(self) -> float:
        """Return how long it stays from now on if nobody asks again."""
        if self.timer is None:
            return self.keep_alive_s
        return max(self.timer.when() - asyncio.get_running_loop().time(), 0)

    def stop_timer(self) -> None:
        """Let no time run out."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class ModelHost:
    """Gives leases on loaded models. Made and used in one event loop."""

    def __init__(
        self,
        library: Library,
        backing: Backing,
        settings: Settings,
        *,
        on_load: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """on_load: told of every load, with the seconds that it took."""
        self._library = library
        self._backing = backing
        self._settings = settings
        self._on_load = on_load
        self._keep_alive_s = parse_keep_alive(settings.keep_alive_s)
        self._entries: dict[str, _Entry] = {}
        self._slots = asyncio.Semaphore(settings.max_loaded)
        self._limit = settings.parallel * settings.max_loaded + settings.queue
        self._users = 0
        self._retired: set[asyncio.Task[None]] = set()
        self._leaving: set[_Entry] = set()
        self.ending = asyncio.Event()
        self._threads = ThreadPoolExecutor(
            3 * settings.max_loaded,  # A load takes two, and an engine may be closing beside it.
            thread_name_prefix="model",
        )

    @property
    def users(self) -> int:
        """Return how many requests have a model, or wait for one."""
        return self._users

    async def lease(self, name: str, *, keep_alive_s: float | None = None) -> Lease:
        """Return a lease on a model, which is loaded first if it was not.

        Raises ModelNotFoundError, QueueFullError, EngineClosedError at the server's end, and what
        the load raised.
        """
        if self._users >= self._limit:
            raise QueueFullError(
                f"{self._users} requests run or wait already, and no more may; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        began_s = time.monotonic()
        self._users += 1
        try:
            model = await asyncio.to_thread(self._library.get, name)
            if model.problem is not None:
                raise LibraryError(f"{model.name}: {model.problem}")
            entry = self._enter(model)
        except BaseException:
            self._users -= 1
            raise
        entry.keep_alive_s = self._keep_alive_s if keep_alive_s is None else keep_alive_s
        try:
            loaded = await self._opened(entry)
        except BaseException:
            self._leave(entry)
            raise
        return Lease(loaded, time.monotonic() - began_s, lambda: self._leave(entry))

    def residents(self) -> list[Resident]:
        """Return what is loaded, the one asked for last first.

        What is on its way out is loaded as long as it answers, and its time is over.
        """
        now = datetime.now(UTC)
        found = []
        for entry in sorted(self._answering(), key=lambda one: -one.used_at_s):
            loaded = entry.loaded
            left_s = 0.0 if entry in self._leaving else entry.expires_in_s
            if loaded is not None:
                expires_at = None if left_s == math.inf else now + timedelta(seconds=left_s)
                found.append(Resident(loaded=loaded, expires_at=expires_at))
        return found

    def states(self) -> list[EngineState]:
        """Return what the engines of those models do now."""
        loaded = [entry.loaded for entry in self._answering()]
        return [one.engine.state() for one in loaded if one is not None]

    def _answering(self) -> list[_Entry]:
        """Return the entries that may be asked, or still answer."""
        return [*self._entries.values(), *(entry for entry in self._leaving if entry.users)]

    def unload(self, name: str) -> bool:
        """Let a model go as soon as its requests have ended; return whether it was there."""
        entry = self._entries.get(name)
        if entry is not None:
            self._retire(entry)
        return entry is not None

    async def close(self) -> None:
        """End every request with EngineClosedError, and free everything."""
        self.ending.set()
        for entry in list(self._entries.values()):
            self._retire(entry)
        for entry in self._leaving:
            entry.idle.set()  # Its engine tells those who still have it.
        while self._retired:
            await asyncio.wait(self._retired)
        self._threads.shutdown()

    async def _opened(self, entry: _Entry) -> Loaded:
        """Wait for a load, which goes on without whoever leaves, unless the server ends."""
        if not entry.opening.done():
            ending = asyncio.ensure_future(self.ending.wait())
            try:
                await asyncio.wait({entry.opening, ending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ending.cancel()
        if not entry.opening.done():
            raise EngineClosedError(_ENDING)
        return await asyncio.shield(entry.opening)

    def _enter(self, model: Model) -> _Entry:
        """Return the entry of a model with one user more, new if there is none as it is now."""
        if self.ending.is_set():
            raise EngineClosedError(_ENDING)
        entry = self._entries.get(model.name)
        if entry is not None and _differs(entry.model, model):
            self._retire(entry)
            entry = None
        if entry is None:
            if len(self._entries) >= self._settings.max_loaded:
                self._retire(min(self._entries.values(), key=lambda e: (e.users > 0, e.used_at_s)))
            entry = _Entry(model)
            entry.opening = asyncio.create_task(self._open(entry))
            entry.opening.add_done_callback(_note)
            self._entries[model.name] = entry
        entry.stop_timer()
        entry.users += 1
        entry.idle.clear()
        entry.used_at_s = time.monotonic()
        return entry

    def _leave(self, entry: _Entry) -> None:
        """Count one user less; the last one starts the timer."""
        assert entry.users > 0, "a lease was released twice"
        self._users -= 1
        entry.users -= 1
        entry.used_at_s = time.monotonic()
        if entry.users:
            return
        entry.idle.set()
        if self._entries.get(entry.model.name) is not entry:
            return
        if entry.keep_alive_s == 0:
            self._retire(entry)
        elif entry.keep_alive_s < math.inf:
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(entry.keep_alive_s, self._retire, entry)

    def _retire(self, entry: _Entry) -> None:
        """Take an entry out; it is closed once it is loaded and idle."""
        entry.stop_timer()
        del self._entries[entry.model.name]
        self._leaving.add(entry)
        task = asyncio.create_task(self._end(entry))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _open(self, entry: _Entry) -> Loaded:
        """Wait for a free place, then load."""
        await self._slots.acquire()
        try:
            if self.ending.is_set():
                raise EngineClosedError(_ENDING)
            began_s = time.monotonic()
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(self._threads, self._load, entry.model)
        except BaseException:
            self._slots.release()
            if self._entries.get(entry.model.name) is entry:
                entry.stop_timer()
                del self._entries[entry.model.name]
            raise
        load_s = time.monotonic() - began_s
        self._on_load(load_s)
        log.info("%s was loaded in %.3f s", entry.model.name, load_s)
        return loaded

    def _load(self, model: Model) -> Loaded:
        """Open both sides of a model, the text while the weights are on their way. Blocks."""
        opening = self._threads.submit(self._backing.open_text, model.path, model.template)
        try:
            engine = self._backing.open_engine(model.path, self._settings)
        except BaseException:
            opening.cancel()
            raise
        try:
            text = opening.result()
        except BaseException:
            engine.close()
            raise
        return Loaded(model=model, text=text, engine=engine)

    async def _end(self, entry: _Entry) -> None:
        """Close a retired entry once its users have gone."""
        try:
            await asyncio.wait({entry.opening})
            loaded = entry.loaded
            if loaded is None:
                return
            if not self.ending.is_set():
                await entry.idle.wait()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, loaded.engine.close)
            self._slots.release()
            log.info("%s was unloaded", entry.model.name)
        finally:
            self._leaving.discard(entry)


def _differs(held: Model, now: Model) -> bool:
    """Return whether a name has come to stand for something else since it was loaded."""
    return (held.path, held.digest, held.template) != (now.path, now.digest, now.template)


def _note(task: asyncio.Task[Loaded]) -> None:
    """Look at how a load ended, even if all who waited for it have gone."""
    if not task.cancelled():
        task.exception()
