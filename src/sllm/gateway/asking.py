"""Asking: answers that are being written, from an engine's threads into the event loop.

The gateway owns a request: its prompt's ids and the answer's so far are the token log, out of
which everything that is shown is made. An engine's steps wait in a list, so however many have come
are taken at once; a client that lets too many wait is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sllm.core.errors import EngineClosedError, SlowClientError
from sllm.core.philox import SEED_MAX
from sllm.core.requests import Finish
from sllm.gateway.asked import Chat
from sllm.gateway.preparation import prepare
from sllm.gateway.said import SaidTokens
from sllm.text.parser import Content, Thinking, ToolCall
from sllm.text.stream import TextStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm.backends.engine import Engine, Ticket
    from sllm.core.requests import Step
    from sllm.gateway.asked import Asked
    from sllm.gateway.host import Lease, ModelHost
    from sllm.gateway.preparation import Prepared
    from sllm.text.parser import Part
    from sllm.text.stream import Shown, TokenReport

WAITING_TOKENS_MAX = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer ended. prompt_s: up to its first token; answer_s: from there to the last.

    thought: tokens of the answer up to the last that showed a thought.
    """

    finish: Finish
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    cached: int
    thought: int
    prompt_s: float
    answer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What is new of one answer. ending: set with the last one.

    logprobs: of all tokens that were asked for; said: of those, the ones of its contents.
    """

    index: int
    parts: tuple[Part, ...]
    logprobs: tuple[TokenReport, ...]
    said: tuple[TokenReport, ...]
    ending: Ending | None


@dataclass(slots=True)
class _News:
    """What becomes a Delta."""

    parts: list[Part] = field(default_factory=list)
    logprobs: list[TokenReport] = field(default_factory=list)
    said: list[TokenReport] = field(default_factory=list)


class Answer:
    """One answer: its token log, and what waits to be read of it.

    ended: whether all of it was read. computed: whether the engine is done with it.
    """

    def __init__(self, index: int, prepared: Prepared, wake: Callable[[], None]) -> None:
        """wake: called in any thread when there is something to read."""
        self.index = index
        self.ended = False
        self.computed = False
        self._request = prepared.request
        self._parser = prepared.parse() if prepared.parse else None
        self._stream = TextStream(
            prepared.text,
            prepared.request.parameters.stop,
            marks=self._parser.marks if self._parser else (),
            begins=False,
            reports_ends=prepared.request.reports_prompt,
        )
        self._echo, self._alone = prepared.echo, prepared.alone
        self._wake = wake
        self._lock = threading.Lock()
        self._steps: list[Step] = []
        self._waiting_tokens = 0
        self._ids: list[int] = []
        self._cached = 0
        self._thought = 0
        self._said = SaidTokens()
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        self._ticket: Ticket | None = None

    def submit(self, engine: Engine) -> None:
        """Begin. Raises what the engine raises."""
        self._ticket = engine.submit(self._request, self._on_step)

    def cancel(self) -> None:
        """End it, wherever it is."""
        if self._ticket is not None and not self.ended:
            self._ticket.cancel()

    def take(self) -> Delta | None:
        """Return what has come since; None if nothing has. Raises what ended the answer."""
        with self._lock:
            steps, self._steps = self._steps, []
            waited, self._waiting_tokens = self._waiting_tokens, 0
        if waited > WAITING_TOKENS_MAX:
            raise SlowClientError(
                f"{waited} tokens waited for the client, and no more may; read answers faster"
            )
        if not steps or self.ended:
            return None
        news = _News()
        finish = None
        for step in steps:
            finish = self._read(step, news)
            if finish is not None:
                break
        ending = None
        if finish is not None:
            self._show(self._stream.flush(), news)
            self._note(self._parser.flush() if self._parser else [], news)
            ending = self._end(finish)
        return Delta(
            index=self.index,
            parts=tuple(news.parts),
            logprobs=tuple(news.logprobs),
            said=tuple(news.said),
            ending=ending,
        )

    def _read(self, step: Step, news: _News) -> Finish | None:
        """Take one step into the log, and what it shows into the news."""
        self._cached = self._cached or step.cached
        if self._echo is not None and step.error is None:
            news.parts.append(Content(self._echo))
            news.logprobs += map(self._stream.report, step.prompt)
            self._echo = None
            if self._alone:
                self.cancel()
                return Finish.LENGTH
        for choice in step.choices:
            if self._first_s is None:
                self._first_s = time.monotonic()
            self._ids.append(choice.token)
            self._show(self._stream.feed(choice), news)
            if self._stream.stopped is not None:
                self.cancel()
                return Finish.STOP
        if step.error is not None:
            self.ended = True
            raise step.error
        if step.finish is Finish.CANCELLED:
            self.ended = True
            raise EngineClosedError("the answer was cancelled before it was whole")
        return step.finish

    def _show(self, shown: Shown, news: _News) -> None:
        """Take what can be shown into the news."""
        news.logprobs += shown.tokens
        self._said.feed(shown.tokens)
        if shown.text:
            plain = [Content(shown.text)]
            self._note(self._parser.feed(shown.text) if self._parser else plain, news)

    def _note(self, parts: Sequence[Part], news: _News) -> None:
        """Take parts of what the log has so far into the news, and note which were thoughts."""
        if any(isinstance(part, Thinking) for part in parts):
            self._thought = len(self._ids)
        news.parts += parts
        news.said += self._said.take(parts)

    def _end(self, finish: Finish) -> Ending:
        self.ended = True
        now_s = time.monotonic()
        first_s = now_s if self._first_s is None else self._first_s
        return Ending(
            finish=finish,
            prompt=self._request.prompt,
            answer=tuple(self._ids),
            cached=self._cached,
            thought=self._thought,
            prompt_s=first_s - self._began_s,
            answer_s=now_s - first_s,
        )

    def _on_step(self, step: Step) -> None:
        with self._lock:
            self._steps.append(step)
            self._waiting_tokens += len(step.choices)
            self.computed = step.finish is not None or step.error is not None
        self._wake()

    @property
    def overrun(self) -> bool:
        """Return whether more waits than may."""
        return self._waiting_tokens > WAITING_TOKENS_MAX


class Asking:
    """The answers to one request of a client, as they come; iterate, and `close` in any case."""

    def __init__(
        self, lease: Lease, prepared: Sequence[Prepared], on_end: Callable[[Ending], None]
    ) -> None:
        """Prepare for an answer each; `submit` begins them, `on_end` is told of their ends."""
        self.lease = lease
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._on_end = on_end
        self.answers = [Answer(i, one, self._wake) for i, one in enumerate(prepared)]

    def submit(self) -> None:
        """Begin all of them. Raises what the engine raises."""
        for answer in self.answers:
            answer.submit(self.lease.loaded.engine)

    def __aiter__(self) -> Asking:
        """Return itself."""
        return self

    async def __anext__(self) -> Delta:
        """Return what is new of one of the answers."""
        while not all(answer.ended for answer in self.answers):
            self._arrived.clear()
            for place, answer in enumerate(self.answers):
                delta = answer.take()
                if delta is not None:
                    if delta.ending is not None:
                        self._on_end(delta.ending)
                    # Whoever was served goes last, so that none waits for another's end.
                    self.answers.append(self.answers.pop(place))
                    return delta
            await self._arrived.wait()
        raise StopAsyncIteration

    def close(self) -> None:
        """End what still runs, and give the model back. Twice does no harm."""
        for answer in self.answers:
            answer.cancel()
        self.lease.release()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed, and nobody waits.
            self._loop.call_soon_threadsafe(self._on_arrival)

    def _on_arrival(self) -> None:
        """Wake the reader. Whoever reads slowly, or not at all, keeps no model from others."""
        self._arrived.set()
        for answer in self.answers:
            if answer.overrun:
                answer.cancel()
        if all(answer.computed for answer in self.answers):
            self.lease.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A whole answer."""

    content: str
    thinking: str
    calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenReport, ...]
    ending: Ending


async def collect(asking: Asking) -> list[Whole]:
    """Return all answers, in order, once they are whole; closes them in any case."""
    parts: list[list[Part]] = [[] for _ in asking.answers]
    logprobs: list[list[TokenReport]] = [[] for _ in asking.answers]
    endings: dict[int, Ending] = {}
    try:
        async for delta in asking:
            parts[delta.index] += delta.parts
            logprobs[delta.index] += delta.logprobs
            if delta.ending is not None:
                endings[delta.index] = delta.ending
    finally:
        asking.close()
    return [
        Whole(
            content="".join(part.text for part in parts[n] if isinstance(part, Content)),
            thinking="".join(part.text for part in parts[n] if isinstance(part, Thinking)),
            calls=tuple(part for part in parts[n] if isinstance(part, ToolCall)),
            logprobs=tuple(logprobs[n]),
            ending=endings[n],
        )
        for n in range(len(parts))
    ]


async def ask(
    host: ModelHost,
    requests: Sequence[Asked],
    *,
    logprobs: int | None = None,
    count: int = 1,
    on_end: Callable[[Ending], None] = lambda _ending: None,
) -> Asking:
    """Return the answers, begun: `count` to each request, all to the same model.

    Raises whatever is wrong with the request before anything of an answer is there.
    """
    assert len({asked.model for asked in requests}) == 1
    lease = await host.lease(requests[0].model, keep_alive_s=requests[0].keep_alive_s)
    try:
        prepared = await asyncio.to_thread(_prepare_all, lease, requests, logprobs=logprobs)
        varied = [_vary(one, n) for one in prepared for n in range(count)]
        asking = Asking(lease, varied, on_end)
    except BaseException:
        lease.release()
        raise
    try:
        asking.submit()
    except BaseException:
        asking.close()
        raise
    return asking


def _prepare_all(
    lease: Lease, requests: Sequence[Asked], *, logprobs: int | None
) -> list[Prepared]:
    loaded = lease.loaded
    prepared = []
    for asked in requests:
        text = loaded.text
        if isinstance(asked.prompt, Chat) and asked.prompt.template:
            text = text.with_template(asked.prompt.template)
        prepared.append(prepare(asked, loaded, text, logprobs=logprobs))
    return prepared


def _vary(prepared: Prepared, number: int) -> Prepared:
    """Return the n-th of several answers to one prompt: the same with another seed."""
    if number == 0:
        return prepared
    parameters = prepared.request.parameters
    seed = (parameters.seed + number) & SEED_MAX
    request = replace(prepared.request, parameters=replace(parameters, seed=seed))
    return replace(prepared, request=request)
