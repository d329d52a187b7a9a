"""A model without weights: its configuration, class and dtype, built on the meta device."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig

from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.transformers.internals import build_model

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
# What Transformers raises for a config.json that is none, or whose values cannot be.
_BAD_CONFIG = (OSError, ValueError, KeyError, ArithmeticError, StrictDataclassError)
# Transformers builds under a default dtype, which PyTorch has one of for all threads.
_BUILDING = threading.Lock()


def read_config(directory: Path, *, trust_remote_code: bool) -> PretrainedConfig:
    """Return the configuration beside the weights; raise InvalidCheckpointError if it is bad."""
    if not (directory / CONFIG_FILE).is_file():
        raise InvalidCheckpointError(
            f"{directory / CONFIG_FILE}: there is none, so the model's class is unknown; save the "
            "model with save_model, or load its tensors with sllm_store.torch.load_dict"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=trust_remote_code
        )
    except _BAD_CONFIG as error:
        raise InvalidCheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    return config


def read_generation_config(directory: Path) -> GenerationConfig | None:
    """Return the generation settings beside the weights, or those an old config.json carries.

    Raises InvalidCheckpointError if they are bad.
    """
    if (directory / GENERATION_FILE).is_file():
        try:
            return GenerationConfig.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise InvalidCheckpointError(f"{directory / GENERATION_FILE}: {error}") from error
    if not (directory / CONFIG_FILE).is_file():
        return None
    return GenerationConfig.from_pretrained(
        directory, config_file_name=CONFIG_FILE, _from_model_config=True
    )


def resolve_class(hf_model_class: str | type[Any]) -> type[Any]:
    """Return the Transformers class of this name, an auto class or a concrete one."""
    if isinstance(hf_model_class, type):
        return hf_model_class
    found = getattr(transformers, hf_model_class, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise InvalidRequestError(
            f"hf_model_class {hf_model_class!r} is not a model class of Transformers "
            f"{transformers.__version__}: use one such as 'AutoModelForCausalLM'"
        )
    return found


def build_on_meta(
    config: PretrainedConfig,
    model_class: type[Any],
    dtype: torch.dtype,
    *,
    trust_remote_code: bool,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Build the module tree under `dtype`; its tensors have shapes but no memory.

    Raises InvalidRequestError if the class cannot be built of this configuration.
    """
    options: dict[str, Any] = {"dtype": dtype}
    if hasattr(model_class, "from_config"):
        options["trust_remote_code"] = trust_remote_code
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        with _BUILDING, torch.device("meta"):
            return build_model(model_class, config, **options)
    except (ValueError, ImportError, AttributeError, RuntimeError) as error:
        if isinstance(error, AttributeError) and _takes(model_class, config):
            raise
        raise InvalidRequestError(
            f"{type(config).__name__} as {model_class.__name__}: {error}"
        ) from error


def _takes(model_class: type[Any], config: PretrainedConfig) -> bool:
    """Return whether the class is made for configurations of this kind, as auto classes find."""
    made_for = getattr(model_class, "config_class", None)
    return made_for is None or isinstance(config, made_for)
