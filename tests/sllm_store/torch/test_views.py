"""Views over a load's memory are typed, strided, fast, and keep the memory alive."""

from __future__ import annotations

import gc
import random
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.dlpack import from_dlpack

from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.loaded import Loaded
from sllm_store.checkpoint.plan import PlacedTensor, PlacedTensors
from sllm_store.errors import InvalidCheckpointError, InvalidRequestError
from sllm_store.native import HostBuffer
from sllm_store.torch.dtypes import dtype_named
from sllm_store.torch.views import view_tensors

pytestmark = pytest.mark.usefixtures("small_heap")


def placed(name: str, dtype: str, shape: tuple[int, ...], offset: int, **more: Any) -> PlacedTensor:
    stride = more.pop("stride", None)
    if stride is None:
        stride = torch.empty(shape, device="meta").stride()
    fields = {"arena": 0, "buffer": False, **more}
    return PlacedTensor(
        name=name, dtype=dtype, shape=shape, stride=stride, offset_bytes=offset, **fields
    )


def load_of(
    tensors: list[PlacedTensor], arenas: list[Any], aliases: dict[str, str] | None = None
) -> Loaded:
    return Loaded(
        arenas=tuple(arenas),
        devices=("cpu",) * len(arenas),
        tensors=PlacedTensors.of(tensors),
        aliases=aliases or {},
        directory=Path("/nowhere"),
        format="sllm",
        tier="disk",
        store="in-process",
    )


@pytest.mark.parametrize("dtype", list(ITEM_SIZES))
def test_every_element_type_is_viewed_in_place(dtype: str) -> None:
    buffer = HostBuffer(4096)
    from_dlpack(buffer)[256:512] = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    size = ITEM_SIZES[dtype]
    if not hasattr(torch, dtype):
        pytest.skip(f"this PyTorch has no {dtype}")
    views = view_tensors(load_of([placed("a", dtype, (2, 3), 256 + size)], [buffer]))
    tensor = views.tensors["a"]
    assert tensor.dtype == dtype_named(dtype)
    assert tensor.shape == (2, 3)
    assert tensor.data_ptr() == buffer.address + 256 + size


def test_strides_and_scalars_and_empty_tensors_are_kept() -> None:
    buffer = HostBuffer(4096)
    from_dlpack(buffer).view(torch.float32)[:6] = torch.arange(6.0)
    views = view_tensors(
        load_of(
            [
                placed("t", "float32", (3, 2), 0, stride=(1, 3)),
                placed("expanded", "float32", (4, 2), 4, stride=(0, 1)),
                placed("scalar", "float32", (), 8),
                placed("empty", "float32", (0, 5), 0),
                placed("nowhere", "int64", (2, 0), 0, arena=1),
            ],
            [buffer, None],
        )
    ).tensors
    assert torch.equal(views["t"], torch.arange(6.0).reshape(2, 3).T)
    assert torch.equal(views["expanded"], torch.tensor([[1.0, 2.0]] * 4))
    assert views["expanded"].stride() == (0, 1)
    assert views["scalar"].item() == 2.0
    assert views["empty"].shape == (0, 5)
    assert views["nowhere"].shape == (2, 0)
    assert views["nowhere"].dtype == torch.int64


def test_an_alias_is_the_same_tensor_object() -> None:
    buffer = HostBuffer(4096)
    tensors = [placed("a", "float32", (2,), 0), placed("b", "float32", (2,), 256, buffer=True)]
    views = view_tensors(load_of(tensors, [buffer], {"a2": "a", "b2": "b"}))
    assert views.tensors["a2"] is views.tensors["a"]
    assert views.buffers["b2"] is views.buffers["b"]
    assert views.tensors.keys() == {"a", "a2"}


def test_wa9_a_tied_tensor_on_two_devices_has_a_place_on_each() -> None:
    buffers = [HostBuffer(4096), HostBuffer(4096)]
    for number, buffer in enumerate(buffers):
        from_dlpack(buffer).view(torch.float32)[64:] = number
    tensors = [placed("a", "float32", (2,), 256), placed("b", "float32", (2,), 512, arena=1)]
    views = view_tensors(load_of(tensors, buffers, {"b": "a"})).tensors
    assert torch.equal(views["a"], torch.zeros(2))
    assert torch.equal(views["b"], torch.ones(2))


def test_an_alias_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="'x' is an alias of 'y'"):
        view_tensors(load_of([], [], {"x": "y"}))


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="float3"):
        view_tensors(load_of([placed("a", "float3", (2,), 0)], [HostBuffer(4096)]))


@pytest.mark.parametrize("seed", range(5))
def test_wa10_memory_lives_until_the_last_tensor_whatever_the_order(seed: int) -> None:
    buffer = HostBuffer(1 << 20)
    from_dlpack(buffer)[:] = 7
    gone = weakref.ref(buffer) if hasattr(buffer, "__weakref__") else None
    loaded = load_of([placed(str(i), "uint8", (256,), 256 * i) for i in range(64)], [buffer])
    tensors = list(view_tensors(loaded).tensors.values())
    del buffer, loaded
    random.Random(seed).shuffle(tensors)
    while tensors:
        gc.collect()
        assert all(bool((tensor == 7).all()) for tensor in tensors)
        tensors.pop()
    gc.collect()
    assert gone is None or gone() is None


def test_twenty_thousand_views_take_a_fraction_of_a_second() -> None:
    buffer = HostBuffer(20_000 * 256)
    loaded = load_of(
        [placed(f"layers.{i}.w", "bfloat16", (8, 16), 256 * i) for i in range(20_000)], [buffer]
    )
    best_s = min(_timed(loaded) for _ in range(3))
    assert best_s < 0.15


def _timed(loaded: Loaded) -> float:
    started_s = time.perf_counter()
    view_tensors(loaded)
    return time.perf_counter() - started_s


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_blocks_become_float32(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    wanted = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((3, 4, 64), dtype=np.float32)
    blocks = gguf.quants.quantize(values, wanted)
    buffer = HostBuffer(8192)
    from_dlpack(buffer)[256 : 256 + blocks.nbytes] = torch.from_numpy(blocks.reshape(-1))
    found = view_tensors(load_of([placed("w", f"gguf:{kind}", (3, 4, 64), 256)], [buffer])).tensors[
        "w"
    ]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(blocks, wanted))
    assert np.abs(found.numpy() - values).max() < 0.5


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from(["uint8", "bfloat16", "float32"]),
            st.sampled_from([(), (3,), (2, 4), (0, 2), (1, 5)]),
            st.booleans(),
            st.integers(0, 2),
            st.sampled_from([1, 1, 1, 2, 9]),
        ),
        min_size=1,
        max_size=20,
    ),
    order=st.randoms(use_true_random=False),
)
def test_tensors_that_are_alike_are_views_as_each_by_itself_would_be(
    kinds: list[tuple[str, tuple[int, ...], bool, int, int]], order: random.Random
) -> None:
    """In rows at equal distances, in rows that break off, and twice at one place."""
    buffer = HostBuffer(1 << 17)
    raw = from_dlpack(buffer)
    raw.copy_(torch.arange(raw.numel()).remainder(251))
    tensors: list[PlacedTensor] = []
    offset = 0
    for dtype, shape, transposed, gap, count in kinds:
        stride = torch.empty(shape, device="meta").stride()
        stride = tuple(reversed(stride)) if transposed and len(shape) == 2 else stride
        for _ in range(count):
            tensors.append(placed(f"t{len(tensors)}", dtype, shape, offset, stride=stride))
            offset += 256 * gap
    order.shuffle(tensors)
    found = view_tensors(load_of(tensors, [buffer])).tensors
    assert list(found) == [tensor.name for tensor in tensors]
    for tensor in tensors:
        base = raw.view(dtype_named(tensor.dtype))
        start = tensor.offset_bytes // base.element_size()
        plain = base.as_strided(tensor.shape, tensor.stride, start)
        view = found[tensor.name]
        assert (view.shape, view.stride(), view.data_ptr()) == (
            plain.shape,
            plain.stride(),
            plain.data_ptr(),
        )
        assert view.is_leaf


@pytest.mark.parametrize("count", [1, 7, 20])
def test_each_tensor_is_by_itself_for_autograd_however_it_was_cut(count: int) -> None:
    buffer = HostBuffer(1 << 16)
    from_dlpack(buffer).view(torch.float32)[:] = 2.0
    tensors = [placed(f"t{n}", "float32", (4, 8), 256 * n) for n in range(count)]
    views = view_tensors(load_of(tensors, [buffer])).tensors
    factor = torch.full((8,), 3.0, requires_grad=True)
    written = views["t0"]
    written.mul_(factor)
    written.sum().backward()
    assert factor.grad is not None
    assert torch.equal(factor.grad, torch.full((8,), 8.0))
    assert from_dlpack(buffer).view(torch.float32)[:32].eq(6.0).all()
    assert all(view._base is None for view in views.values())
    assert not any(view.requires_grad for name, view in views.items() if name != "t0")
