"""Backing: how a server opens what a loaded model is made of."""

from __future__ import annotations

from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sllm.backends.engine import Engine
    from sllm.gateway.settings import Settings
    from sllm.text.model import TextModel
    from sllm_store.groups.head_start import HeadStart


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """Both block. open_text takes a checkpoint's path and a template instead of its own."""

    open_text: Callable[[Path, str | None], TextModel]
    open_engine: Callable[[Path, Settings], Engine]


def open_here() -> Backing:
    """Return what opens models in this process; PyTorch is imported with the first of them."""
    return Backing(open_text=_open_text, open_engine=_open_engine)


@contextmanager
def open_ahead(settings: Settings, path: Path | None = None) -> Iterator[Backing]:
    """Yield what opens models in this process, where PyTorch is being imported already.

    path: of a checkpoint that will be asked for at once, and is on its way. What began ends with
    the context.
    """
    begun = {} if path is None else {path: _begin(path, settings)}

    def open_engine(path: Path, settings: Settings) -> Engine:
        return _open_engine(path, settings, begun.pop(path, None))

    importing = Thread(target=_import_runtime, name="import-runtime")
    importing.start()
    try:
        yield Backing(open_text=_open_text, open_engine=open_engine)
    finally:
        importing.join()
        for head_start in begun.values():
            if head_start is not None:
                head_start.close()


def _open_text(path: Path, template: str | None) -> TextModel:
    from sllm.text.model import TextModel

    return TextModel.open(path, template=template)


def _open_engine(path: Path, settings: Settings, ahead: HeadStart | None = None) -> Engine:
    from sllm.backends.early import import_runtime

    head_start = ahead or _begin(path, settings)
    with nullcontext() if head_start is None else closing(head_start):
        import_runtime()
        from sllm.backends.local import EngineOptions, open_engine

        return open_engine(
            path,
            EngineOptions(
                context_tokens=settings.context_tokens,
                device=settings.device,
                device_budget_bytes=settings.device_budget_bytes,
                host_budget_bytes=settings.host_budget_bytes,
                parallel=settings.parallel,
                waiting=settings.queue,
                draft=settings.draft,
                speculate=settings.speculate,
            ),
            head_start=head_start,
        )


def _import_runtime() -> None:
    from sllm.backends.early import import_runtime

    with suppress(Exception):  # Who opens a model meets it, and can tell: also OSError.
        import_runtime()


def _begin(path: Path, settings: Settings) -> HeadStart | None:
    from sllm.backends.early import begin_early

    return begin_early(path, settings.device, budget_bytes=settings.device_budget_bytes)
