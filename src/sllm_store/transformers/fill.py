"""Put loaded tensors into a model that is on meta: by the module's names, or a publisher's.

A checkpoint of ours has the module's own names, so its tensors are assigned as they are, without
a copy. Published ones may have other names, and experts that have to be stacked; Transformers'
own conversions do that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sllm_store.errors import InvalidCheckpointError
from sllm_store.transformers.internals import (
    Outcome,
    dtype_of_each,
    finish_loading,
    load_converted,
    load_exact,
    tied_targets,
)
from sllm_store.transformers.placement import Placement, device_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from transformers import PreTrainedModel

    from sllm_store.torch.views import Views

_SHOWN_MAX = 5

Tensors = dict[str, torch.Tensor]


def fill_model(
    model: PreTrainedModel,
    views: Views,
    placement: Placement,
    *,
    dtype: torch.dtype | None,
    published: bool,
    directory: Path,
) -> None:
    """Give every parameter and buffer its value; nothing is left on meta.

    `published` tensors have a publisher's names and become `dtype`, by default the model's, as
    `from_pretrained` makes them. Others have the module's names and keep what is stored unless
    `dtype` is given. Raises InvalidCheckpointError listing what is missing, left over or of
    another shape.
    """
    groups = _shared(views.tensors)
    if published or not views.tensors.keys() <= model.state_dict().keys():
        outcome = load_converted(model, views.tensors, placement, dtype or model.dtype)
    else:
        outcome = _assign(model, views.tensors, groups, dtype)
    _require_shapes(outcome, directory)
    finish_loading(model, outcome, placement)
    require_complete(outcome.missing_keys, outcome.unexpected_keys, directory)
    _restore_buffers(model, views.buffers, placement, cast=dtype is not None)
    _tie(model, groups)
    left = [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if tensor.is_meta
    ]
    assert not left, f"left on meta: {left[:_SHOWN_MAX]}"


def _assign(
    model: PreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    groups: Iterable[list[str]],
    dtype: torch.dtype | None,
) -> Outcome:
    """Assign by the module's own names; tensors that share memory still do after a cast."""
    own = model.state_dict()
    wrong = {
        (name, tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in tensors.items()
        if tensor.shape != own[name].shape
        or tensor.is_floating_point() != own[name].is_floating_point()
    }
    if wrong:
        return Outcome(missing_keys=set(), unexpected_keys=set(), mismatched_keys=wrong)
    given = dict(tensors)
    if dtype is not None:
        wanted = dtype_of_each(model, given, dtype)
        given = {
            name: tensor.to(wanted[name]) if tensor.is_floating_point() else tensor
            for name, tensor in given.items()
        }
        for group in groups:
            given.update(dict.fromkeys(group, given[group[0]]))
    for target, source in tied_targets(model).items():
        if any(target in group and source in group for group in groups):
            del given[target]  # finish_loading ties it, without comparing the bytes.
    return load_exact(model, given)


def _shared(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the names that stand for one tensor: the same bytes in the same form."""
    found: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            found.setdefault(key, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _tie(model: PreTrainedModel, groups: Iterable[list[str]]) -> None:
    """Make one Parameter of parameters that were one when they were saved."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for group in groups:
        names = [name for name in group if name in parameters]
        for name in names[1:]:
            if parameters[name] is not parameters[names[0]]:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner).register_parameter(leaf, parameters[names[0]])


def _restore_buffers(
    model: PreTrainedModel,
    buffers: Mapping[str, torch.Tensor],
    placement: Placement,
    *,
    cast: bool,
) -> None:
    """Put non-persistent buffers back as they were saved.

    With `cast` they get the dtype that the model gives them, so that float32 ones such as inv_freq
    stay so. A buffer that this version of the model does not have, or makes in another shape, is
    left as the model made it.
    """
    present = dict(model.named_buffers(remove_duplicate=False))
    for name, saved in buffers.items():
        made = present.get(name)
        if made is None or made.shape != saved.shape:
            continue
        dtype = made.dtype if cast and saved.is_floating_point() else saved.dtype
        owner, _, leaf = name.rpartition(".")
        value = saved.to(device=device_of(placement, name), dtype=dtype)
        model.get_submodule(owner).register_buffer(leaf, value, persistent=False)


def _require_shapes(outcome: Outcome, directory: Path) -> None:
    if outcome.mismatched_keys:
        name, found, wanted = min(outcome.mismatched_keys, key=lambda key: key[0])
        raise InvalidCheckpointError(
            f"{directory}: {len(outcome.mismatched_keys)} tensors do not fit the model of its "
            f"config.json, such as {name!r}: stored {tuple(found)}, wanted {tuple(wanted)}"
        )
    if outcome.conversion_errors:
        name, message = next(iter(outcome.conversion_errors.items()))
        raise InvalidCheckpointError(f"{directory}: {name!r} cannot be converted: {message}")


def require_complete(missing: set[str], unexpected: set[str], directory: Path) -> None:
    """Raise InvalidCheckpointError if a model and its checkpoint do not have the same tensors."""
    parts = [
        f"{len(names)} {what} (such as {', '.join(sorted(names)[:_SHOWN_MAX])})"
        for names, what in (
            (missing, "tensors that the model needs are missing"),
            (unexpected, "tensors are none of the model's"),
        )
        if names
    ]
    if parts:
        raise InvalidCheckpointError(
            f"{directory}: the tensors and config.json disagree: {'; '.join(parts)}; is "
            "hf_model_class the class that was saved?"
        )
