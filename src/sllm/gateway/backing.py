"""Backing: how a server opens what a loaded model is made of."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sllm.backends.engine import Engine
    from sllm.gateway.settings import Settings
    from sllm.text.model import TextModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """Both block. open_text takes a checkpoint's path and a template instead of its own."""

    open_text: Callable[[Path, str | None], TextModel]
    open_engine: Callable[[Path, Settings], Engine]


def open_here() -> Backing:
    """Return what opens models in this process; PyTorch is imported with the first of them."""
    return Backing(open_text=_open_text, open_engine=_open_engine)


def _open_text(path: Path, template: str | None) -> TextModel:
    from sllm.text.model import TextModel

    return TextModel.open(path, template=template)


def _open_engine(path: Path, settings: Settings) -> Engine:
    from sllm.backends.early import begin_early, import_runtime

    head_start = begin_early(path, settings.device, budget_bytes=settings.device_budget_bytes)
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
