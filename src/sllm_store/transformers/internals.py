"""The one door to what Transformers keeps private: conversion of names, and the last steps.

These are the calls that `from_pretrained` makes around its own reading of files; see
core_model_loading.py there. Everything else of this package uses public names. Models are Any here:
the annotations of those calls do not agree with what they accept.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    build_glob_alternation,
    convert_and_load_state_dict_in_model,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel


@dataclass(slots=True)
class Outcome:
    """What an assignment left open, by parameter name; Transformers' own steps update it."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, Any, Any]] = field(default_factory=set)
    conversion_errors: dict[str, str] = field(default_factory=dict)

    def missing_and_mismatched(self) -> set[str]:
        """Return the names that have no value yet."""
        return self.missing_keys | {key[0] for key in self.mismatched_keys}


def build_model(model_class: type[Any], config: Any, **options: Any) -> PreTrainedModel:
    """Build a concrete model class, or an auto class's choice, with `config.dtype` kept in step."""
    make = getattr(model_class, "from_config", None) or model_class._from_config
    model: PreTrainedModel = make(config, **options)
    return model


def dtype_of_each(model: Any, names: Iterable[str], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype that each tensor gets when the model is asked to be `dtype`.

    `model` was built under that dtype: a module that chose its own keeps it, and so do those that
    the architecture keeps in float32.
    """
    own = model.state_dict()
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return {name: own[name].dtype for name in names}
    pattern, groups, _ = build_glob_alternation(list(plan))
    by_group: dict[str | None, torch.dtype] = {key: plan[glob] for key, glob in groups.items()}
    dtypes = {}
    for name in names:
        match = pattern.search(name)
        dtypes[name] = own[name].dtype if match is None else by_group[match.lastgroup]
    return dtypes


def load_converted(
    model: Any,
    tensors: Mapping[str, torch.Tensor],
    device_map: Mapping[str, torch.device],
    dtype: torch.dtype,
) -> Outcome:
    """Assign tensors with a published checkpoint's names: renamed, merged and cast as needed."""
    mapping: Any = get_model_conversion_mapping(model)
    config = LoadStateDictConfig(
        device_map=dict(device_map),
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=mapping,
    )
    with _no_progress_bar():
        info, _ = convert_and_load_state_dict_in_model(
            model=model, state_dict=dict(tensors), load_config=config, disk_offload_index=None
        )
    return Outcome(
        missing_keys=info.missing_keys,
        unexpected_keys=info.unexpected_keys,
        mismatched_keys=info.mismatched_keys,
        conversion_errors=dict(info.conversion_errors),
    )


def load_exact(model: Any, tensors: Mapping[str, torch.Tensor]) -> Outcome:
    """Assign tensors with the module's own names and shapes, as they are."""
    result = model.load_state_dict(dict(tensors), strict=False, assign=True)
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        if name in tensors:
            tensor._is_hf_initialized = True
    return Outcome(
        missing_keys=set(result.missing_keys), unexpected_keys=set(result.unexpected_keys)
    )


def finish_loading(model: Any, outcome: Outcome, device_map: Mapping[str, torch.device]) -> None:
    """Make what no checkpoint has (non-persistent buffers), tie weights, update `outcome`."""
    model.mark_tied_weights_as_initialized(outcome)
    model._move_missing_keys_from_meta_to_device(
        outcome.missing_and_mismatched(), dict(device_map), None, None
    )
    model._initialize_missing_keys(is_quantized=False)
    model.tie_weights(missing_keys=outcome.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(outcome)


def tied_targets(model: Any) -> dict[str, str]:
    """Return the parameters that the architecture ties, with what each is tied to."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return tied


def no_split_classes(model: Any) -> list[str]:
    """Return the classes of modules that must stay on one device."""
    return sorted(model._no_split_modules or ())


def skip_keys(model: Any) -> Any:
    """Return the arguments that are not moved between devices."""
    return model._skip_keys_device_placement


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """The bar counts assignments, which take no time; the load has its own progress."""
    switches: Any = logging
    shown = switches.is_progress_bar_enabled()
    switches.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            switches.enable_progress_bar()


def save_custom_code(model: Any, directory: Path, config: Any) -> None:
    """Copy the code of a model that is not part of Transformers beside its weights."""
    if model._auto_class is not None:
        custom_object_save(model, directory, config=config)
