"""Placement: the longest entry wins, and every tensor is inside its arena."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sllm_store.checkpoint.layout import plan_image
from sllm_store.checkpoint.model import Checkpoint, DataFile, Extent, Tensor, contiguous_stride
from sllm_store.checkpoint.plan import LoadPlan, plan_load
from sllm_store.errors import InvalidRequestError

CHUNK = 1 << 20


def checkpoint_of(
    names: list[str],
    *,
    buffers: tuple[str, ...] = (),
    aliases: dict[str, str] | None = None,
    size: int = 64,
) -> Checkpoint:
    """Return a checkpoint with an extent of `size` bytes for each name."""
    tensors = {
        name: Tensor(name=name, dtype="float32", shape=(size // 4,), stride=(1,), extent=number)
        for number, name in enumerate([*names, *buffers])
    }
    extents = tuple(
        Extent(file=0, offset=number * 256, size_bytes=size) for number in range(len(tensors))
    )
    return Checkpoint(
        path=Path("m"),
        format="sllm",
        files=(DataFile(path=Path("m/tensor.data_0"), size_bytes=2**40, mtime_ns=0, inode=0),),
        extents=extents,
        tensors={name: tensors[name] for name in names},
        buffers={name: tensors[name] for name in buffers},
        aliases=aliases or {},
    )


def plan(checkpoint: Checkpoint, device_map: dict[str, str]) -> LoadPlan:
    return plan_load(checkpoint, plan_image(checkpoint, CHUNK), device_map)


def devices(planned: LoadPlan) -> dict[str, str]:
    return {tensor.name: planned.devices[tensor.arena] for tensor in planned.tensors}


def test_the_longest_entry_that_ends_at_a_dot_wins() -> None:
    names = ["layers.1.w", "layers.10.w", "layers.1.attn.q", "head", "layers.1x", "norm.w"]
    device_map = {"": "a", "layers.1": "b", "layers.1.attn": "c", "head": "d", "norm": "e"}
    assert devices(plan(checkpoint_of(names), device_map)) == {
        "layers.1.w": "b",
        "layers.10.w": "a",
        "layers.1.attn.q": "c",
        "head": "d",
        "layers.1x": "a",
        "norm.w": "e",
    }


def test_a_module_asked_for_early_does_not_hide_an_entry_below_it() -> None:
    names = ["a.b.x", "a.b.c.y", "a.b.c", "a"]
    device_map = {"": "1", "a.b.c.y": "2", "a.b.c": "3"}
    assert list(devices(plan(checkpoint_of(names), device_map)).values()) == ["1", "2", "3", "1"]


def test_an_empty_map_puts_everything_on_the_cpu_where_the_image_is_the_arena() -> None:
    checkpoint = checkpoint_of(["a", "b"], buffers=("c",))
    planned = plan(checkpoint, {})
    assert planned.devices == ("cpu",)
    assert planned.arenas[0].pieces == ()
    assert planned.arenas[0].size_bytes == planned.image.size_bytes
    assert [tensor.offset_bytes for tensor in planned.tensors] == list(planned.image.offsets)
    assert [tensor.buffer for tensor in planned.tensors] == [False, False, True]


def test_a_tensor_that_no_entry_matches_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"places no tensor 'head\.w'"):
        plan(checkpoint_of(["layers.0.w", "head.w"]), {"layers": "cuda:0"})


def test_storage_on_two_devices_is_in_both_arenas() -> None:
    checkpoint = checkpoint_of(["embed", "other"])
    tied = Tensor(name="head", dtype="float32", shape=(8,), stride=(1,), extent=0, storage_offset=2)
    both = Checkpoint(
        path=checkpoint.path,
        format=checkpoint.format,
        files=checkpoint.files,
        extents=checkpoint.extents,
        tensors={**checkpoint.tensors, "head": tied},
    )
    planned = plan(both, {"embed": "cuda:0", "head": "cuda:1", "other": "cuda:0"})
    assert [sorted(arena.offsets) for arena in planned.arenas] == [[0, 1], [0]]
    assert planned.tensors[2].offset_bytes == 8


def test_an_alias_is_placed_by_itself_only_on_another_device() -> None:
    checkpoint = checkpoint_of(["embed.w"], aliases={"head.w": "embed.w"})
    assert devices(plan(checkpoint, {"": "cuda:0"})) == {"embed.w": "cuda:0"}
    assert devices(plan(checkpoint, {"embed": "cuda:0"})) == {"embed.w": "cuda:0"}
    apart = plan(checkpoint, {"embed": "cuda:0", "head": "cuda:1"})
    assert devices(apart) == {"embed.w": "cuda:0", "head.w": "cuda:1"}


def test_a_checkpoint_without_tensors_needs_no_device() -> None:
    planned = plan(checkpoint_of([]), {"": "cuda:0"})
    assert (planned.devices, planned.arenas, list(planned.tensors)) == ((), (), [])


def test_twenty_thousand_tensors_are_planned_in_a_moment() -> None:
    names = [f"model.layers.{n // 10}.mlp.experts.{n % 10}.weight" for n in range(20_000)]
    checkpoint = checkpoint_of(names)
    device_map = {f"model.layers.{n}": f"cuda:{n % 4}" for n in range(2000)}
    image = plan_image(checkpoint, CHUNK)
    start_s = time.process_time()
    planned = plan_load(checkpoint, image, device_map)
    assert time.process_time() - start_s < 1.0
    assert len(planned.tensors) == 20_000


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)


@settings(deadline=None)
@given(
    names=st.lists(NAMES, unique=True, max_size=12),
    device_map=st.dictionaries(NAMES, st.sampled_from(["cpu", "cuda:0", "cuda:1"]), max_size=6),
)
def test_any_map_places_every_tensor_as_a_plain_search_would(
    names: list[str], device_map: dict[str, str]
) -> None:
    whole = {"": "cuda:2", **device_map}
    planned = plan(checkpoint_of(names), whole)
    for name, device in devices(planned).items():
        fits = [k for k in whole if k in ("", name) or name.startswith(f"{k}.")]
        assert device == whole[max(fits, key=len)]
    for tensor in planned.tensors:
        arena = planned.arenas[tensor.arena]
        assert tensor.offset_bytes % 256 == 0
        assert tensor.offset_bytes + 64 <= arena.size_bytes
        assert tensor.stride == contiguous_stride(tensor.shape)
