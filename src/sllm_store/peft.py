"""Save and load LoRA adapters: several on one model, bare or already a PeftModel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import EMBEDDING_LAYER_NAMES

from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.torch.devices import DeviceMap, parse_device, store_device
from sllm_store.torch.dtypes import parse_float_dtype
from sllm_store.torch.route import choose_route
from sllm_store.torch.save import write_checkpoint
from sllm_store.torch.views import view_tensors

if TYPE_CHECKING:
    import os

CONFIG_FILE = "adapter_config.json"
# What a caller may say for "where the layers are".
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
_PREFIX = "base_model.model."  # Of every name in a published adapter.
_SHOWN_MAX = 5


def save_lora(
    adapter: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    adapter_name: str | None = None,
    max_shard_size: int | str = "10GB",
) -> None:
    """Save one adapter of a model: its tensors in their own dtype, and adapter_config.json.

    `adapter` is a PeftModel, or a model with injected adapters; adapter_name chooses one, by
    default the active one. The model is not changed.
    """
    name = adapter_name or _active(adapter)
    configs: Any = adapter.peft_config
    if name not in configs:
        raise InvalidRequestError(f"no adapter {name!r} on the model (it has {sorted(configs)})")
    config = copy.deepcopy(configs[name])
    config.inference_mode = True
    tensors = get_peft_model_state_dict(
        adapter, adapter_name=name, save_embedding_layers=_embeddings_wanted(config)
    )
    if not isinstance(adapter, PeftModel):
        tensors = {f"{_PREFIX}{key.removeprefix(_PREFIX)}": tensors[key] for key in tensors}

    def write_small_files(directory: Path) -> None:
        config.save_pretrained(str(directory))

    write_checkpoint(
        tensors, path, max_shard_size=max_shard_size, write_small_files=write_small_files
    )


def load_lora(  # noqa: PLR0913, PLR0917 - upstream's signature, and what it lacks
    model: torch.nn.Module,
    adapter_name: str,
    adapter_path: str | os.PathLike[str],
    device_map: DeviceMap = "auto",
    storage_path: str | os.PathLike[str] | None = None,
    is_trainable: bool = False,  # noqa: FBT001, FBT002 - upstream's signature
    torch_dtype: str | torch.dtype | None = None,
    *,
    store: str | None = None,
    timeout_s: float | None = None,
) -> PeftModel:
    """Attach a saved adapter to a model and return the PeftModel.

    A bare model becomes a PeftModel with this adapter active; a PeftModel gets one more, and keeps
    the active one. Paths and `store` are as for sllm_store.torch.load_dict. device_map 'auto' puts
    each tensor where its layer is, which is where it ends up in any case. The adapter gets the
    dtype of the layers it adapts, or torch_dtype. Unless is_trainable, it is frozen and the model
    set to evaluation mode. Raises InvalidCheckpointError listing tensors that do not fit.
    """
    if isinstance(model, PeftModel) and adapter_name in model.peft_config:
        raise InvalidRequestError(
            f"the model already has an adapter {adapter_name!r}: choose another name, or remove "
            "it with delete_adapter"
        )
    dtype = parse_float_dtype(torch_dtype)
    device = _device(model) if device_map in AUTOMATIC else _only_device(device_map)
    route = choose_route(adapter_path, storage_path, store=store)
    loaded = route.load({"": store_device(device)}, timeout_s=timeout_s)
    config = _read_config(loaded.directory)
    config.inference_mode = not is_trainable
    peft_model = _attach(model, config, adapter_name)
    tensors = view_tensors(loaded).tensors
    try:
        _fill(peft_model, tensors, adapter_name, loaded.directory)
    except BaseException:
        if len(peft_model.peft_config) > 1:
            peft_model.delete_adapter(adapter_name)
        else:
            peft_model.unload()
        raise
    if dtype is not None:
        _cast(peft_model, tensors, adapter_name, dtype)
    for name, parameter in peft_model.named_parameters():
        if f".{adapter_name}." in name:
            parameter.requires_grad_(is_trainable and parameter.is_floating_point())
    if not is_trainable:
        peft_model.eval()
    return peft_model


def _attach(model: torch.nn.Module, config: PeftConfig, adapter_name: str) -> PeftModel:
    """Add an adapter without memory to a model."""
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise InvalidRequestError(
            f"{config.peft_type} adapters have no layers to attach to: load them with "
            "PeftModel.from_pretrained"
        )
    options: dict[str, Any] = {"low_cpu_mem_usage": True, "autocast_adapter_dtype": False}
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(adapter_name, config, **options)
            return model
        # PEFT would replace the name of the base model by where this one was loaded from, and warn.
        base = config.base_model_name_or_path
        config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
        bare: Any = model
        attached: PeftModel = get_peft_model(bare, config, adapter_name, **options)
        config.base_model_name_or_path = base
    except ValueError as error:
        raise InvalidRequestError(f"adapter {adapter_name!r} does not fit: {error}") from error
    return attached


def _fill(
    model: PeftModel, tensors: dict[str, torch.Tensor], adapter_name: str, directory: Path
) -> None:
    """Assign an adapter's tensors, and require that they are all of it."""
    try:
        result: Any = set_peft_model_state_dict(
            model, tensors, adapter_name=adapter_name, low_cpu_mem_usage=True
        )
    except (KeyError, RuntimeError) as error:
        raise InvalidCheckpointError(f"{directory}: the adapter does not fit: {error}") from error
    unexpected = sorted(result.unexpected_keys)
    if unexpected:
        raise InvalidCheckpointError(
            f"{directory}: {len(unexpected)} tensors belong to no layer of this model, such as "
            f"{', '.join(unexpected[:_SHOWN_MAX])}; was the adapter made for another model?"
        )
    missing = [name for name, value in model.named_parameters() if value.is_meta]
    if missing:
        raise InvalidCheckpointError(
            f"{directory}: {len(missing)} tensors of the adapter are missing, such as "
            f"{', '.join(missing[:_SHOWN_MAX])}"
        )


def _cast(
    model: PeftModel, tensors: dict[str, torch.Tensor], adapter_name: str, dtype: torch.dtype
) -> None:
    """Give an adapter its stored values in `dtype`: PEFT has rounded them to its layers' dtype."""
    filled = get_peft_model_state_dict(
        model, adapter_name=adapter_name, save_embedding_layers=False
    )
    stored = {filled[key].data_ptr(): tensors[key] for key in filled.keys() & tensors.keys()}
    for name, parameter in model.named_parameters():
        if f".{adapter_name}." in name and parameter.is_floating_point():
            value = stored.get(parameter.data_ptr(), parameter.data)
            parameter.data = value.to(parameter.device, dtype)


def _read_config(directory: Path) -> PeftConfig:
    if not (directory / CONFIG_FILE).is_file():
        raise InvalidCheckpointError(
            f"{directory / CONFIG_FILE}: there is none, so this is no adapter; save one with "
            "save_lora"
        )
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(directory))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidCheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    return config


def _active(adapter: Any) -> str:
    """Return the one adapter that is active; raise InvalidRequestError if there are more."""
    if not getattr(adapter, "peft_config", None):
        raise InvalidRequestError(
            f"{type(adapter).__name__} has no adapter: pass a PeftModel, or save the model itself "
            "with save_model"
        )
    active: Any = getattr(adapter, "active_adapters", None)
    if callable(active):  # Transformers' models have a method, PEFT's a property.
        active = active()
    names = [active] if isinstance(active, str) else list(active or adapter.peft_config)
    if len(names) != 1:
        raise InvalidRequestError(f"the adapters {names} are active: say adapter_name")
    return str(names[0])


def _embeddings_wanted(config: PeftConfig) -> bool | Literal["auto"]:
    """Return whether to save embeddings, without PEFT asking the hub what the base model has."""
    base = config.base_model_name_or_path
    if not base or (Path(base) / "config.json").is_file():
        return "auto"
    targets = getattr(config, "target_modules", None)
    return not isinstance(targets, str) and bool(set(targets or ()) & set(EMBEDDING_LAYER_NAMES))


def _device(model: torch.nn.Module) -> torch.device:
    """Return the device of a model, 'cpu' if it has several: PEFT then moves each tensor."""
    devices = {parameter.device for parameter in model.parameters()}
    only = devices.pop() if len(devices) == 1 else torch.device("cpu")
    return only if only.type == "cuda" else torch.device("cpu")


def _only_device(device_map: DeviceMap) -> torch.device:
    """Return the device to load to, which is only a stop on the way to each layer's own."""
    if isinstance(device_map, int | str | torch.device):
        return parse_device(device_map)
    devices = {parse_device(device) for device in device_map.values()}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")
