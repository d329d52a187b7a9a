"""Save and load Hugging Face Transformers models; adapters too, under upstream's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm_store.transformers.load import load_model
from sllm_store.transformers.save import save_model

if TYPE_CHECKING:
    from sllm_store.peft import load_lora, save_lora

__all__ = ["load_lora", "load_model", "save_lora", "save_model"]


def __getattr__(name: str) -> Any:
    """Import the adapters' functions when asked for: models load without PEFT installed."""
    if name in {"load_lora", "save_lora"}:
        from sllm_store import peft

        return getattr(peft, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
