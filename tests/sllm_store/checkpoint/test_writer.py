"""Saves: what was in memory is on disk, for us and for upstream, or nothing is."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sllm_store import native
from sllm_store.checkpoint.dtype import ITEM_SIZES
from sllm_store.checkpoint.model import contiguous_stride
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.verify import verify_checkpoint
from sllm_store.checkpoint.writer import MAX_SHARD_BYTES, CheckpointWriter, Source
from sllm_store.errors import InvalidRequestError, LoadCancelledError, WriteError
from tests.checkpoint_memory import read_as_upstream, read_back

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.checkpoint_memory import Described, Memory


KIB = 1024


def described(memory: Memory, sources: list[Source]) -> dict[str, Described]:
    return {s.name: (memory.elements(s), s.shape, s.dtype) for s in sources}


def save(path: Path, sources: list[Source], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    with CheckpointWriter(path, max_shard_bytes=max_shard_bytes) as writer:
        writer.write(sources)


@st.composite
def views(draw: st.DrawFn, memory: Memory) -> list[Source]:
    """Draw a state dict: storages of any bytes, some shared, with views of any kind over them."""
    sources: list[Source] = []
    for number in range(draw(st.integers(0, 5))):
        size = draw(st.sampled_from([0, 1, 3, 8, 16, 100, 256, 1000, 4096, 9000]))
        storage = f"s{number}"
        memory.storage(storage, bytes((number * 37 + i * 11) % 256 for i in range(size)))
        for _ in range(draw(st.integers(1, 3))):
            dtype = draw(st.sampled_from(sorted(ITEM_SIZES)))
            room = size // ITEM_SIZES[dtype]
            offset = draw(st.integers(0, room))
            shape, stride = draw(fitting_view(room - offset))
            name = f"t{len(sources)}"
            sources.append(
                memory.view(name, dtype, shape, storage=storage, stride=stride, offset=offset)
            )
    return sources


@st.composite
def fitting_view(draw: st.DrawFn, room: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if room == 0:
        shape = draw(st.sampled_from([(0,), (2, 0), (0, 3)]))
        return shape, contiguous_stride(shape)
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(), (1,), (room,), (1, room), (max(room // 2, 1), 1)]))
        return shape, contiguous_stride(shape)
    step = draw(st.integers(0, 3))
    count = draw(st.integers(1, 1 + (room - 1) // max(step, 1)))
    return (count,), (step,)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), way=st.tuples(st.sampled_from([1, 300, 5000, 10 << 30]), st.booleans()))
def test_any_state_dict_comes_back_to_us_and_to_upstream(
    tmp_path_factory: pytest.TempPathFactory,
    memory: Memory,
    *,
    data: st.DataObject,
    way: tuple[int, bool],
) -> None:
    shard, stream = way
    sources = data.draw(views(memory))
    path = tmp_path_factory.mktemp("save") / "model"
    with CheckpointWriter(path, max_shard_bytes=shard) as writer:
        writer.write(() if stream else sources)
        for source in sources if stream else ():
            writer.add(source)
        assert writer.bytes_written == writer.bytes_total
    checkpoint = open_checkpoint(path)
    expected = described(memory, sources)
    assert read_back(checkpoint) == expected
    assert list(checkpoint.tensors) == [source.name for source in sources]
    assert [t.stride for t in checkpoint.tensors.values()] == [s.stride for s in sources]
    assert read_as_upstream(path) == expected
    assert verify_checkpoint(checkpoint).problems == ()
    assert all(extent.offset % 256 == 0 for extent in checkpoint.extents)
    assert all(file.size_bytes % 4096 == 0 for file in checkpoint.files)


def test_same_tensors_give_the_same_files(tmp_path: Path, memory: Memory) -> None:
    sources = [memory.tensor("a", b"abc"), memory.tensor("b", bytes(5000))]
    save(tmp_path / "one", sources)
    save(tmp_path / "two", sources)
    for name in ("tensor.data_0", "tensor_index.json", "checkpoint.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_sizes_that_fill_no_block_lose_no_tail(tmp_path: Path, memory: Memory) -> None:
    sources = [memory.tensor(f"t{n}", bytes(i % 251 for i in range(n))) for n in (1000, 3, 4096)]
    save(tmp_path / "model", sources)
    assert read_as_upstream(tmp_path / "model") == described(memory, sources)


def test_shared_storage_is_written_once_and_stays_shared(tmp_path: Path, memory: Memory) -> None:
    memory.storage("base", bytes(range(48)))
    rows = [memory.view(f"row{n}", "float32", (4,), storage="base", offset=4 * n) for n in range(3)]
    tied = memory.view("whole", "float32", (3, 4), storage="base")
    save(tmp_path / "model", [*rows, tied])
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.size_bytes == 48
    assert {tensor.extent for tensor in checkpoint.tensors.values()} == {0}
    assert [tensor.storage_offset for tensor in checkpoint.tensors.values()] == [0, 4, 8, 0]


def test_of_a_huge_storage_only_what_views_look_at_is_written(
    tmp_path: Path, memory: Memory
) -> None:
    memory.storage("huge", bytes(1 << 20))
    first = memory.view("first", "float32", (4,), storage="huge", offset=3)
    last = memory.view("last", "uint8", (7,), storage="huge", offset=(1 << 20) - 7)
    save(tmp_path / "model", [last, first])
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.size_bytes == 16 + 7
    assert [tensor.storage_offset for tensor in checkpoint.tensors.values()] == [0, 0]


def test_tensors_added_one_by_one_share_a_storage_already_written(
    tmp_path: Path, memory: Memory
) -> None:
    memory.storage("base", bytes(range(64)))
    with CheckpointWriter(tmp_path / "model") as writer:
        writer.add(memory.view("whole", "int16", (32,), storage="base"))
        writer.add(memory.view("tied", "int16", (32,), storage="base"))
        writer.add(memory.view("part", "int64", (2,), storage="base", offset=1), buffer=True)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.size_bytes == 64
    assert checkpoint.buffers["part"].storage_offset == 1
    assert list(checkpoint.tensors) == ["whole", "tied"]


def test_buffers_and_aliases_stay_out_of_the_index_that_upstream_loads(
    tmp_path: Path, memory: Memory
) -> None:
    with CheckpointWriter(tmp_path / "model") as writer:
        buffers = [memory.tensor("inv_freq", b"12345678", "float32")]
        writer.write([memory.tensor("w", b"abcd")], buffers=buffers, aliases={"head": "w"})
    assert list(json.loads((tmp_path / "model/tensor_index.json").read_text())) == ["w"]
    checkpoint = open_checkpoint(tmp_path / "model")
    assert list(checkpoint.buffers) == ["inv_freq"]
    assert checkpoint.aliases == {"head": "w"}


def test_a_tensor_never_spans_two_partitions(tmp_path: Path, memory: Memory) -> None:
    sources = [memory.tensor(f"t{n}", bytes(n)) for n in (600, 300, 5000, 100)]
    save(tmp_path / "model", sources, max_shard_bytes=1100)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert [extent.file for extent in checkpoint.extents] == [0, 0, 1, 2]
    assert [file.size_bytes for file in checkpoint.files] == [4096, 8192, 4096]


def test_an_empty_state_dict_is_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "model", [])
    assert open_checkpoint(tmp_path / "model").tensors == {}


def test_bytes_written_end_at_the_total_even_with_a_control_used_before(
    tmp_path: Path, memory: Memory
) -> None:
    control = native.Control()
    for name in ("one", "two"):
        with CheckpointWriter(tmp_path / name, control=control) as writer:
            writer.write([memory.tensor("a", bytes(10_000))])
            assert writer.bytes_written == writer.bytes_total == 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float99"}, "unknown dtype"),
        ({"shape": (2**40,)}, "reaches to byte"),
        ({"storage_offset": 1}, "reaches to byte"),
        ({"address": 0}, "at address 0x0"),
        ({"stride": (1, 1)}, "no view"),
        ({"stride": (-1,)}, "no view"),
        ({"name": "\ud800"}, "not text"),
    ],
)
def test_what_is_no_tensor_is_refused_before_anything_is_written(
    tmp_path: Path, memory: Memory, change: dict[str, object], message: str
) -> None:
    good = memory.tensor("a", bytes(16))
    fields = {name: getattr(good, name) for name in good.__slots__} | change
    with pytest.raises(InvalidRequestError, match=message):
        save(tmp_path / "model", [type(good)(**fields)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "aliases", [{"x": "missing"}, {"a": "a"}], ids=["of nothing", "of a stored name"]
)
def test_an_alias_gives_a_new_name_to_a_stored_tensor(
    tmp_path: Path, memory: Memory, aliases: dict[str, str]
) -> None:
    with (
        pytest.raises(InvalidRequestError, match="alias"),
        CheckpointWriter(tmp_path / "model") as writer,
    ):
        writer.write([memory.tensor("a", b"abcd")], aliases=aliases)
    assert list(tmp_path.iterdir()) == []


def test_two_tensors_of_one_name_are_refused(tmp_path: Path, memory: Memory) -> None:
    source = memory.tensor("a", b"abcd")
    with pytest.raises(InvalidRequestError, match="two tensors are named 'a'"):
        save(tmp_path / "model", [source, source])


def test_a_writer_that_nobody_wrote_to_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nothing was written"):
        CheckpointWriter(tmp_path / "model").__enter__().__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_the_old_checkpoint_and_no_trace(
    tmp_path: Path, memory: Memory
) -> None:
    old = [memory.tensor("a", b"old")]
    save(tmp_path / "model", old)
    with (
        pytest.raises(InvalidRequestError, match="two tensors"),
        CheckpointWriter(tmp_path / "model") as writer,
    ):
        writer.write([memory.tensor("b", b"new")] * 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert list(read_back(open_checkpoint(tmp_path / "model"))) == ["a"]


def test_a_cancelled_save_publishes_nothing(tmp_path: Path, memory: Memory) -> None:
    control = native.Control()
    control.cancel()
    with (
        pytest.raises(LoadCancelledError, match="nothing was published"),
        CheckpointWriter(tmp_path / "model", control=control) as writer,
    ):
        writer.write([memory.tensor("a", b"abcd")])
    assert list(tmp_path.iterdir()) == []


def test_a_shorter_checkpoint_leaves_no_partition_of_a_longer_one(
    tmp_path: Path, memory: Memory
) -> None:
    long = [memory.tensor(f"t{n}", bytes([n]) * 9000) for n in range(4)]
    save(tmp_path / "model", long, max_shard_bytes=9000)
    short = [memory.tensor("u", b"x" * 100), memory.tensor("v", b"y" * 9000)]
    save(tmp_path / "model", short, max_shard_bytes=9000)
    names = sorted(path.name for path in (tmp_path / "model").glob("tensor.data_*"))
    assert names == ["tensor.data_0", "tensor.data_1"]
    assert read_as_upstream(tmp_path / "model") == described(memory, short)


@pytest.fixture
def small_files() -> Iterator[int]:
    """A limit on the length of files, as a disk that is full in the middle of a partition."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 64 * KIB
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    yield size
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_that_cannot_grow_leaves_the_old_checkpoint(
    tmp_path: Path, memory: Memory, small_files: int, *, stream: bool
) -> None:
    save(tmp_path / "model", [memory.tensor("a", b"old")])
    big = memory.tensor("b", bytes(8 << 20))
    assert small_files < big.size_bytes
    with (
        pytest.raises(WriteError, match=r"cannot save .*nothing was published; raise the limit"),
        CheckpointWriter(tmp_path / "model") as writer,
    ):
        (writer.add if stream else lambda source: writer.write([source]))(big)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert list(open_checkpoint(tmp_path / "model").tensors) == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, memory: Memory) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mount.stderr!r}")
    try:
        save(disk / "model", [memory.tensor("a", b"old")])
        with pytest.raises(WriteError, match=r"No space left.*free some space"):
            save(disk / "model", [memory.tensor("b", bytes(2 << 20))])
        assert [path.name for path in disk.iterdir()] == ["model"]
        assert list(open_checkpoint(disk / "model").tensors) == ["a"]
    finally:
        subprocess.run(["umount", disk], check=True)


SAVE_FOR_EVER = """
import ctypes, sys
from pathlib import Path
from sllm_store.checkpoint.writer import CheckpointWriter, Source
data = ctypes.create_string_buffer(b"n" * 3_000_000)
number = 0
while True:
    number += 1
    with CheckpointWriter(Path(sys.argv[1]), max_shard_bytes=1_000_000) as writer:
        (writer.directory / "config.json").write_text("{}" * number)
        writer.write([
            Source(name=f"{number}.{part}", dtype="uint8", shape=(900_000,), stride=(1,),
                   storage_offset=0, storage=part, address=ctypes.addressof(data) + part,
                   size_bytes=900_000)
            for part in range(3)
        ])
    print(number, flush=True)
"""


@pytest.mark.parametrize("delay_ms", [0, 1, 3, 7, 13, 22])
def test_a_save_killed_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, memory: Memory, delay_ms: int
) -> None:
    target = tmp_path / "model"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOR_EVER, str(target)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()  # The first one is there: from now on there is always one.
        signal.sigtimedwait([], delay_ms / 1000)
        process.kill()
        process.wait(timeout=30)
    checkpoint = open_checkpoint(target)
    assert len({name.split(".")[0] for name in checkpoint.tensors}) == 1
    assert verify_checkpoint(checkpoint).problems == ()
    # The next save sweeps up after the dead one.
    save(target, [memory.tensor("a", b"next")])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "config.json").exists()


@pytest.mark.slow
def test_a_tensor_over_two_gib_is_written_whole(tmp_path: Path) -> None:
    size = (2 << 30) + 12_345
    buffer = native.HostBuffer(size)
    tail = native.HostBuffer(4096)
    big = Source(
        name="big",
        dtype="uint8",
        shape=(size,),
        stride=(1,),
        storage_offset=0,
        storage="big",
        address=buffer.address,
        size_bytes=size,
    )
    small = Source(
        name="small",
        dtype="uint8",
        shape=(4096,),
        stride=(1,),
        storage_offset=0,
        storage="small",
        address=tail.address,
        size_bytes=4096,
    )
    save(tmp_path / "model", [big, small])
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.size_bytes == size + 4096
    assert checkpoint.extents[1].offset >= size
    assert verify_checkpoint(checkpoint).problems == ()


def test_the_files_of_a_save_are_the_golden_ones(
    tmp_path: Path, memory: Memory, golden: Path
) -> None:
    """Set SLLM_WRITE_GOLDEN=1 to write new ones; docs/format.md has to change with them."""
    memory.storage("shared", bytes(range(48)))
    tensors = [
        memory.view("layers.0.weight", "float32", (3, 4), storage="shared"),
        memory.view("layers.0.row", "float32", (4,), storage="shared", offset=8),
        memory.view("layers.0.column", "float32", (3,), storage="shared", stride=(4,), offset=1),
        memory.tensor("layers.1.weight", b"bfloat16", "bfloat16"),
        memory.view("empty", "float16", (0, 4), storage="shared"),
        memory.tensor("mask", b"\0\1\1", "bool"),
        memory.tensor("quantised", bytes(range(200, 232)), "float8_e4m3fn"),
    ]
    memory.storage("scalar", bytes(8))
    tensors.append(memory.view("step", "int64", (), storage="scalar"))
    with CheckpointWriter(tmp_path / "model", max_shard_bytes=600) as writer:
        writer.write(
            tensors,
            buffers=[memory.tensor("rotary.inv_freq", bytes(range(16)), "float32")],
            aliases={"head.weight": "layers.0.weight"},
        )
    made = {path.name: path.read_bytes() for path in sorted((tmp_path / "model").iterdir())}
    producer = json.loads(made["checkpoint.json"])["producer"]
    made["checkpoint.json"] = made["checkpoint.json"].replace(producer.encode(), b"golden")
    directory = golden / "checkpoint-v1"
    if os.environ.get("SLLM_WRITE_GOLDEN"):
        directory.mkdir(exist_ok=True)
        for name, content in made.items():
            (directory / name).write_bytes(content)
    assert made == {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_golden_checkpoint_opens_with_every_tensor_as_it_was_saved(
    memory: Memory, golden: Path
) -> None:
    checkpoint = open_checkpoint(golden / "checkpoint-v1")
    content = read_back(checkpoint)
    assert content["layers.0.row"] == (bytes(range(32, 48)), (4,), "float32")
    column = bytes([*range(4, 8), *range(20, 24), *range(36, 40)])
    assert content["layers.0.column"] == (column, (3,), "float32")
    assert content["step"] == (bytes(8), (), "int64")
    assert content["empty"] == (b"", (0, 4), "float16")
    assert checkpoint.tensors["layers.0.weight"].extent == checkpoint.tensors["layers.0.row"].extent
    assert verify_checkpoint(checkpoint).problems == ()
