"""Who loads a checkpoint: a running store, or this process."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_store.checkpoint.reader import name_under
from sllm_store.config import default_storage_path
from sllm_store.errors import (
    CheckpointNotFoundError,
    DeadlineError,
    InvalidRequestError,
    PoolTooSmallError,
    StoreUnavailableError,
)
from sllm_store.stream import load_checkpoint
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sllm_store.checkpoint.loaded import Loaded, Placed
    from sllm_store.client import SllmStoreClient

IN_PROCESS = "in-process"
LOOK_TIMEOUT_S = 2.0  # How long a store that nobody named is waited for.

# What a store says of loads that it can never do, and this process may.
_NOT_SERVED = (
    CheckpointNotFoundError,
    StoreUnavailableError,
    InvalidRequestError,
    PoolTooSmallError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One checkpoint and the way to its bytes.

    `path` is where the checkpoint is on this machine, None if only a store knows it. With a `store`
    that is asked for `name`; if `or_in_process`, this process loads what the store does not serve.
    A route serves one load, which closes the connection to the store.
    """

    name: str
    path: Path | None
    store: SllmStoreClient | None
    or_in_process: bool

    def load(
        self,
        device_map: Mapping[str, str],
        *,
        shared: bool = False,
        timeout_s: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_placed: Callable[[Placed], None] | None = None,
    ) -> Loaded:
        """Load the checkpoint, and log once who did; `shared` memory is the store's own.

        on_placed is called as soon as the memory is there: see SllmStoreClient.load. It is called
        again if this process begins anew with a load that the store refused.
        """
        if shared and self.store is None:
            raise InvalidRequestError(
                f"{self.name}: shared=True wants memory of a store, and none serves it here: start "
                "one with `sllm-store start`, or load without shared"
            )
        started_s = time.monotonic()
        loaded = None
        if self.store is not None:
            loaded = self._load_through_store(
                self.store,
                device_map,
                shared=shared,
                timeout_s=timeout_s,
                on_progress=on_progress,
                on_placed=on_placed,
            )
        if loaded is None:
            assert self.path is not None
            loaded = load_checkpoint(
                self.path,
                device_map,
                timeout_s=timeout_s,
                on_progress=on_progress,
                on_placed=on_placed,
            )
        load_s = time.monotonic() - started_s
        size_bytes = sum(arena.size for arena in loaded.arenas if arena is not None)
        fields = {"store": loaded.store, "tier": loaded.tier}
        log.info(
            "loaded %s (%s) by %s from %s in %.2f s",
            self.name,
            format_size(size_bytes),
            loaded.store,
            loaded.tier,
            load_s,
            extra={"size_bytes": size_bytes, "load_s": load_s, **fields},
        )
        return loaded

    def _load_through_store(
        self,
        store: SllmStoreClient,
        device_map: Mapping[str, str],
        *,
        shared: bool,
        timeout_s: float | None,
        on_progress: Callable[[int, int], None] | None,
        on_placed: Callable[[Placed], None] | None,
    ) -> Loaded | None:
        """Ask the store; None if it does not serve this checkpoint and this process may load."""
        try:
            with store:
                return store.load(
                    self.name,
                    device_map,
                    shared=shared,
                    timeout_s=timeout_s,
                    on_progress=on_progress,
                    on_placed=on_placed,
                )
        except _NOT_SERVED as error:
            if shared or not self.or_in_process or self.path is None:
                raise
            log.info("the store at %s does not serve %s: %s", store.address, self.name, error)
            return None


def choose_route(
    name: str | os.PathLike[str],
    storage_path: str | os.PathLike[str] | None = None,
    *,
    store: str | None = None,
) -> Route:
    """Decide who loads a checkpoint.

    `name` is an absolute path, or a name under storage_path (default: $STORAGE_PATH, else
    ~/models), or one that the running store knows, or a path from here. `store` is None (the store
    at the default address if it answers within LOOK_TIMEOUT_S and serves this checkpoint, else this
    process), 'in-process', or a store's address. Raises StoreUnavailableError if that store does
    not answer, CheckpointNotFoundError if nobody has the checkpoint.
    """
    running = None if store == IN_PROCESS else _find_store(store)
    unused = None if running is None else running.client
    try:
        route = _decide(os.fspath(name), storage_path, store, running)
        if route.store is not None:
            unused = None
        return route
    finally:
        if unused is not None:
            unused.close()


def _decide(
    name: str,
    storage_path: str | os.PathLike[str] | None,
    store: str | None,
    running: _RunningStore | None,
) -> Route:
    places = _places(name, storage_path, running, named=store is not None)
    path = next((place for place in places if place.exists()), None)
    if path is None and (running is None or storage_path is not None):
        tried = " or ".join(str(place) for place in places)
        raise CheckpointNotFoundError(
            f"no checkpoint {name!r}: nothing at {tried}; save one there, or set storage_path"
        )
    served = None
    if running is not None:
        served = name if path is None else name_under(running.root, path)
        if served is None and store is not None:
            raise InvalidRequestError(
                f"the store at {store} serves {running.root}, and {path} is outside of it: pass "
                f"store={IN_PROCESS!r}, or start the store with another --storage-path"
            )
    if running is None or served is None:
        return Route(name=name, path=path, store=None, or_in_process=True)
    return Route(name=served, path=path, store=running.client, or_in_process=store is None)


@dataclass(frozen=True, slots=True)
class _RunningStore:
    """A connection to a store that answers, and the directory whose checkpoints it serves."""

    client: SllmStoreClient
    root: Path


def _find_store(store: str | None) -> _RunningStore | None:
    """Return the store to ask; None if the caller named none and none answers."""
    # gRPC, which few need here.
    from sllm_store.client import SllmStoreClient, default_address, is_running

    address = store or default_address()
    try:
        client = SllmStoreClient(address)
        with ExitStack() as failed:
            failed.callback(client.close)
            root = client.storage_path(timeout_s=None if store else LOOK_TIMEOUT_S)
            failed.pop_all()
        return _RunningStore(client, root)
    except (StoreUnavailableError, DeadlineError) as error:
        if store is not None:
            raise
        if is_running(address):
            log.warning("this process loads by itself: %s", error)
        return None


def _places(
    name: str,
    storage_path: str | os.PathLike[str] | None,
    running: _RunningStore | None,
    *,
    named: bool,
) -> list[Path]:
    """Return where to look for a checkpoint, in order, as absolute paths.

    The directory of a store that the caller named goes before the default storage path, that of
    one that merely runs goes after it.
    """
    given = Path(name).expanduser()
    if given.is_absolute():
        return [given]
    if storage_path is not None:
        return [Path(storage_path).expanduser().absolute() / given]
    places = [default_storage_path(os.environ).absolute() / given]
    if running is not None:
        places.insert(0 if named else 1, running.root / given)
    return [*places, given.absolute()]
