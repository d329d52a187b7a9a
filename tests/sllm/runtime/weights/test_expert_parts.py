"""Every expert gets its own bytes, whichever way a checkpoint has them."""

from __future__ import annotations

import pytest

from sllm.runtime.weights.expert_parts import part_experts
from sllm_store.errors import InvalidCheckpointError
from sllm_store.groups.stored import StoredTensor


def _tensor(name: str, *shape: int, offset: int = 0) -> StoredTensor:
    size_bytes = 4
    for extent in shape:
        size_bytes *= extent
    return StoredTensor(
        name=f"model.layers.3.{name}",
        dtype="float32",
        shape=shape,
        item_bytes=4,
        file=0,
        offset=offset,
        size_bytes=size_bytes,
    )


def _part(
    *tensors: StoredTensor, experts: int = 2
) -> tuple[list[StoredTensor], list[list[StoredTensor]]]:
    named = {tensor.name.removeprefix("model.layers.3."): tensor for tensor in tensors}
    return part_experts(named, experts=experts, where="layer 3")


def test_what_every_token_needs_is_apart() -> None:
    router, own = _tensor("mlp.gate.weight", 2, 8), _tensor("mlp.experts.1.up_proj.weight", 4, 8)
    shared, records = _part(router, own)
    assert (shared, records) == ([router], [[], [own]])


def test_a_tensor_of_all_experts_is_cut_into_theirs() -> None:
    joined = _tensor("mlp.experts.gate_up_proj", 2, 6, 8, offset=64)
    _, records = _part(joined)
    each = 3 * 8 * 4
    assert [
        (part.name.removeprefix("model.layers.3.mlp.experts."), part.offset, part.shape)
        for record in records
        for part in record
    ] == [
        ("0.gate_proj.weight", 64, (3, 8)),
        ("0.up_proj.weight", 64 + each, (3, 8)),
        ("1.gate_proj.weight", 64 + 2 * each, (3, 8)),
        ("1.up_proj.weight", 64 + 3 * each, (3, 8)),
    ]


def test_four_bit_experts_keep_their_scales() -> None:
    names = ("weight", "scales", "biases")
    _, records = _part(*(_tensor(f"mlp.switch_mlp.up_proj.{name}", 2, 3, 8) for name in names))
    assert [part.name[-len("1.up_proj.scales") :] for part in records[1]][1] == "1.up_proj.scales"
    assert [part.offset for part in records[1]] == [96] * 3


def test_experts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="is of expert 2, and config"):
        _part(_tensor("mlp.experts.2.up_proj.weight", 4, 8))
    for shape in ((3, 4, 8), (0, 4, 8), ()):
        with pytest.raises(InvalidCheckpointError, match="which 2 cannot share"):
            _part(_tensor("mlp.experts.down_proj", *shape))
    with pytest.raises(InvalidCheckpointError, match="which 2 cannot share"):
        _part(_tensor("mlp.experts.gate_up_proj", 2, 5, 8))
