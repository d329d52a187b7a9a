"""Quantised models: Transformers' quantisers, fed with tensors that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from sllm_store.errors import InvalidRequestError
from sllm_store.transformers.fill import require_complete

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_BITSANDBYTES_KEYS = {"load_in_8bit", "load_in_4bit"}


def parse_quantization(quantization_config: Any) -> Any:
    """Return a quantisation configuration object, or None.

    Accepts the objects of Transformers and their dictionaries; one with load_in_8bit or
    load_in_4bit is bitsandbytes', as upstream reads it. Raises InvalidRequestError if it is
    neither, or if bitsandbytes is needed and missing.
    """
    if quantization_config is None:
        return None
    if isinstance(quantization_config, Mapping):
        quantization_config = _from_mapping(dict(quantization_config))
    if not hasattr(quantization_config, "quant_method"):
        raise InvalidRequestError(
            f"quantization_config {quantization_config!r}: use a Transformers configuration such "
            "as BitsAndBytesConfig(load_in_4bit=True), or its dictionary"
        )
    if isinstance(quantization_config, BitsAndBytesConfig) and find_spec("bitsandbytes") is None:
        raise InvalidRequestError(
            "quantization_config asks for bitsandbytes, which is not installed: "
            "pip install bitsandbytes"
        )
    return quantization_config


def load_quantized(
    model_class: type[Any],
    config: PretrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    directory: Path,
    **options: Any,
) -> PreTrainedModel:
    """Let `from_pretrained` quantise the tensors, or take ones that are quantised already.

    The tensors are on the host: the quantiser moves one at a time to the device, so the device
    never holds the full-precision model. Raises InvalidCheckpointError if they are not all of the
    model's, InvalidRequestError if the quantiser's package is missing.
    """
    chosen = {key: value for key, value in options.items() if value is not None}
    try:
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=dict(tensors), output_loading_info=True, **chosen
        )
    except ImportError as error:
        raise InvalidRequestError(f"the quantisation cannot run here: {error}") from error
    require_complete(info["missing_keys"], info["unexpected_keys"], directory)
    if getattr(model, "hf_device_map", None) is None:
        model.hf_device_map = {"": next(model.parameters()).device}
    loaded: PreTrainedModel = model
    return loaded


def _from_mapping(fields: dict[str, Any]) -> Any:
    if "quant_method" not in fields and not _BITSANDBYTES_KEYS & fields.keys():
        raise InvalidRequestError(
            f"quantization_config {fields!r}: it names neither a quant_method nor load_in_8bit or "
            "load_in_4bit"
        )
    try:
        if "quant_method" in fields:
            return AutoQuantizationConfig.from_dict(fields)
        bitsandbytes: Any = BitsAndBytesConfig
        return bitsandbytes.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"quantization_config {fields!r}: {error}") from error
