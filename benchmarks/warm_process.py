"""One process of `benchmarks.warm_start`: from nothing to a model's first tokens, with the time.

Nothing is imported before the clock runs but what Python itself brings. Stages are those of
`open_engine`; threads that work beside a stage are not counted again, except for `text`, which runs
beside the engine's opening as it does in the server.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROMPT_TOKENS = 16
TOKENS = 4
DEADLINE_S = 600


class Stopwatch:
    """Seconds of each stage, in the order in which they ended."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a context to a stage."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - began_s

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls count to a stage."""

        @wraps(call)
        def counted(*args: Any, **named: Any) -> Any:
            with self.stage(name):
                return call(*args, **named)

        return counted


def main() -> None:
    """Open a model, have it answer, and print one line of JSON."""
    path, device, started_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    watch = Stopwatch()
    watch.stages["interpreter"] = time.monotonic() - started_s
    opening = Thread(target=_open_text, args=(path, watch))
    with watch.stage("begin early"):
        from sllm.backends.early import begin_early, import_runtime

        head_start = begin_early(path, device)
        opening.start()
    with watch.stage("imports"):
        import_runtime()
        from sllm.backends import local
    _time_stages(local, watch)
    if head_start is not None:
        _time_head_start(head_start, watch)
    options = local.EngineOptions(device=device, context_tokens=512)
    with watch.stage("open"), nullcontext() if head_start is None else closing(head_start):
        engine = local.open_engine(path, options, head_start=head_start)
    with watch.stage("wait for text"):
        opening.join()
    opened_s = time.monotonic()
    tokens_s = _answer(engine)
    print(
        json.dumps(
            {
                "stages": {**watch.stages, "first token": tokens_s[0] - opened_s},
                "first_token_s": tokens_s[0] - started_s,
                "next_token_s": (tokens_s[-1] - tokens_s[0]) / max(len(tokens_s) - 1, 1),
                "modules": len(sys.modules),
            }
        ),
        flush=True,
    )
    engine.close()


def _open_text(path: Path, watch: Stopwatch) -> None:
    with watch.stage("text, beside"):
        from sllm.text.model import TextModel

        TextModel.open(path)


def _time_head_start(head_start: Any, watch: Stopwatch) -> None:
    """Have waits for what was begun early counted."""
    head_start.stored = watch.timed("open: wait for file", head_start.stored)
    head_start.arrived = watch.timed("open: wait for bytes", head_start.arrived)


def _time_stages(local: Any, watch: Stopwatch) -> None:
    """Have the steps of open_engine counted one by one."""
    local.place_weights = watch.timed("open: weights", local.place_weights)
    local.compute_first = watch.timed("open: first passes", local.compute_first)
    local.CacheMemory = watch.timed("open: cache", local.CacheMemory)
    warmed = local.warmed_products

    @contextmanager
    def warming(*args: Any, **named: Any) -> Iterator[Any]:
        context = warmed(*args, **named)
        with watch.stage("open: find kernels"):
            found = context.__enter__()
        try:
            yield found
        finally:
            with watch.stage("open: wait for kernels"):
                context.__exit__(*sys.exc_info())

    local.warmed_products = warming

    local.ModelGroups = SimpleNamespace(
        open=watch.timed("open: checkpoint", local.ModelGroups.open)
    )


def _answer(engine: Any) -> list[float]:
    """Return when each token of an answer came."""
    from sllm.core.requests import TokenRequest
    from sllm.core.sampling import SamplingParameters

    came_s: list[float] = []
    over, errors = Event(), []

    def on_step(step: Any) -> None:
        came_s.extend([time.monotonic()] * len(step.choices))
        if step.error is not None:
            errors.append(step.error)
        if step.last:
            over.set()

    parameters = SamplingParameters(seed=1, max_tokens=TOKENS, temperature=0)
    prompt = tuple(range(1, PROMPT_TOKENS + 1))
    engine.submit(TokenRequest(prompt=prompt, parameters=parameters), on_step)
    assert over.wait(DEADLINE_S), "no answer"
    for error in errors:
        raise error
    return came_s


if __name__ == "__main__":
    main()
