"""Tensors on the wire: what one side writes the other reads, whatever the tensors are."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sllm_store.checkpoint.columns import from_columns, to_columns
from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.plan import PlacedTensor, PlacedTensors
from sllm_store.proto import storage_pb2 as pb

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def placed(draw: st.DrawFn) -> PlacedTensor:
    shape = draw(SHAPES)
    other = st.tuples(*[st.integers(0, 2**40) for _ in shape])
    return PlacedTensor(
        name=draw(st.text(st.characters(exclude_categories=["Cs"]))),
        dtype=draw(st.sampled_from(["bfloat16", "gguf:Q4_1", "float4_e2m1fn_x2"])),
        shape=shape,
        stride=draw(st.just(contiguous_stride(shape)) | other),
        arena=draw(st.integers(0, 3)),
        offset_bytes=draw(st.integers(0, 2**63 - 1)),
        buffer=draw(st.booleans()),
    )


@given(tensors=st.lists(placed(), max_size=20))
def test_tensors_arrive_as_they_were_sent(tensors: list[PlacedTensor]) -> None:
    sent = to_columns(PlacedTensors.of(tensors)).SerializeToString()
    arrived = from_columns(pb.Tensors.FromString(sent))
    assert arrived == tuple(tensors)
    assert all(type(tensor.buffer) is bool for tensor in arrived)


def test_a_kind_is_told_once_and_a_stride_only_where_it_says_something() -> None:
    transposed = [
        PlacedTensor(f"t{n}", "float32", (2, 3), (1, 2), 0, n * 256, buffer=False) for n in range(5)
    ]
    usual = [tensor._replace(stride=(3, 1)) for tensor in transposed]
    kinds = to_columns(PlacedTensors.of([*usual, *transposed])).kinds
    assert [(list(kind.shape), list(kind.stride)) for kind in kinds] == [
        ([2, 3], []),
        ([2, 3], [1, 2]),
    ]


def test_columns_of_different_lengths_are_refused() -> None:
    tensor = PlacedTensor("a", "uint8", (1,), (1,), 0, 0, buffer=False)
    message = to_columns(PlacedTensors.of([tensor]))
    message.names.append("b")
    with pytest.raises(ValueError, match="shorter"):
        from_columns(message)


def test_a_tensor_of_an_unknown_kind_is_refused() -> None:
    tensor = PlacedTensor("a", "uint8", (1,), (1,), 0, 0, buffer=False)
    message = to_columns(PlacedTensors.of([tensor]))
    message.kind[0] = 1
    with pytest.raises(ValueError, match="kind"):
        from_columns(message)
