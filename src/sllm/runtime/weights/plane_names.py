"""Names of planes in a checkpoint: `NAME.planes-BITS-ZERO-COLUMNS-HALVES.PLANE`, as tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from sllm.runtime.kernels.layout import WIDTH, Format, Planes
from sllm.runtime.quant.planar import PlanarMatrix
from sllm_store.errors import InvalidCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sllm.runtime.quant.matrix import Matrix

_NAME = re.compile(
    r"(.+)\.planes-(\d{1,3})-(\d{1,3})-(\d{1,3})-(\d)\.(low|high|scales|offsets|steps|floors)"
)
_HIGH = {5: torch.uint8, 6: torch.int16}
_BITS = frozenset({4, 5, 6, 8})


def name_planes(
    tensors: Mapping[str, torch.Tensor | Matrix],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors by the names that join_planes knows; quantised matrices are in planes."""
    for name, stored in tensors.items():
        if isinstance(stored, torch.Tensor):
            yield name, stored
            continue
        assert isinstance(stored, PlanarMatrix), "what is quantised is in planes"
        form = stored.planes.format
        numbers = f"{form.bits}-{form.zero}-{form.scale_columns}-{form.halves}"
        for plane, tensor in stored.planes.tensors.items():
            yield f"{name}.planes-{numbers}.{plane}", tensor


def join_planes(
    tensors: Mapping[str, torch.Tensor | Matrix],
) -> dict[str, torch.Tensor | Matrix]:
    """Make one matrix of the tensors that are its planes.

    Raises InvalidCheckpointError for planes that are not those of one matrix.
    """
    joined: dict[str, torch.Tensor | Matrix] = {}
    found: dict[tuple[str, Format], dict[str, torch.Tensor]] = {}
    for name, stored in tensors.items():
        named = _NAME.fullmatch(name)
        if named is None or not isinstance(stored, torch.Tensor):
            joined[name] = stored
            continue
        form = Format(*(int(number) for number in named.group(2, 3, 4, 5)))
        found.setdefault((named[1], form), {})[named[6]] = stored
    for (name, form), planes in found.items():
        if name in joined:
            raise InvalidCheckpointError(f"{name} is there twice")
        joined[name] = PlanarMatrix(_check(name, form, planes))
    return joined


def _check(name: str, form: Format, planes: Mapping[str, torch.Tensor]) -> Planes:
    """Return planes whose shapes and types are those that kernels go by."""
    low = planes.get("low")
    sound = form.bits in _BITS and form.halves in {1, 2} and form.scale_columns > 0
    if not sound or form.scale_columns % form.group or low is None:
        raise InvalidCheckpointError(f"{name}: its planes are of no known format: {form}")
    rows, groups = low.shape[0], low.shape[1] if low.dim() > 1 else 0
    wide = (rows, groups * form.group // form.scale_columns)
    kinds: dict[str, tuple[tuple[int, ...], set[torch.dtype | None]]] = {
        "low": ((rows, groups, WIDTH), {torch.int32}),
        "high": ((rows, groups, WIDTH), {_HIGH.get(form.bits)}),
        "scales": (wide, {torch.float16, torch.bfloat16, torch.float32}),
        "offsets": (wide, {torch.float16, torch.bfloat16, torch.float32}),
        "steps": ((rows, groups * form.halves), {torch.uint8, torch.int8}),
        "floors": ((rows, groups), {torch.uint8}),
    }
    needed = {"low", "scales"} | ({"high"} if form.bits in _HIGH else set())
    missing = sorted(needed - planes.keys())
    wrong = [
        key
        for key, plane in planes.items()
        if tuple(plane.shape) != kinds[key][0] or plane.dtype not in kinds[key][1]
    ]
    if missing or wrong:
        raise InvalidCheckpointError(
            f"{name}: planes that are missing: {missing}; of another shape or type: {wrong}"
        )
    return Planes(form, **planes)
