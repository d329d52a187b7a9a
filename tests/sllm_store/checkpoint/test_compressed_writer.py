"""Compressed saves: every bit comes back, what does not get smaller is kept, nobody is misled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sllm_store import native
from sllm_store.checkpoint import compressed_writer
from sllm_store.checkpoint.compressed_writer import CODED_BYTES_MIN
from sllm_store.checkpoint.manifest import SEGMENT_ALIGNMENT, SEGMENT_BYTES
from sllm_store.checkpoint.reader import list_checkpoints, open_checkpoint
from sllm_store.checkpoint.verify import verify_checkpoint
from sllm_store.checkpoint.writer import MAX_SHARD_BYTES, CheckpointWriter, Source
from sllm_store.errors import InvalidRequestError, LoadCancelledError, WriteError
from tests.checkpoint_memory import read_back, weights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.checkpoint_memory import Described, Memory

MIB = 1 << 20


def described(memory: Memory, sources: list[Source]) -> dict[str, Described]:
    return {s.name: (memory.elements(s), s.shape, s.dtype) for s in sources}


def save(
    path: Path, sources: list[Source], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> CheckpointWriter:
    with CheckpointWriter(path, max_shard_bytes=max_shard_bytes, compress=True) as writer:
        writer.write(sources)
    return writer


@st.composite
def state_dicts(draw: st.DrawFn, memory: Memory) -> list[Source]:
    """Draw storages of floats that compress, do not, or partly do, and views over them."""
    sources: list[Source] = []
    for number in range(draw(st.integers(1, 4))):
        size = draw(
            st.sampled_from(
                [0, 3, 8000, CODED_BYTES_MIN - 2, CODED_BYTES_MIN, 100_001, MIB - 2, 2 * MIB + 7]
            )
        )
        noisy = draw(st.sampled_from([0, size, min(size, MIB)]))
        storage = f"s{number}"
        noise = np.random.default_rng(number).bytes(noisy)
        memory.storage(storage, (noise + weights(size // 2 + 1, seed=number))[:size])
        for _ in range(draw(st.integers(1, 2))):
            dtype = draw(st.sampled_from(["bfloat16", "float16", "float32", "int64", "uint8"]))
            room = size // {"float32": 4, "int64": 8, "uint8": 1}.get(dtype, 2)
            offset = draw(st.sampled_from([0, 0, min(room, 5)]))
            step = draw(st.sampled_from([1, 1, 3]))
            count = (room - offset + step - 1) // step
            name = f"t{len(sources)}"
            sources.append(
                memory.view(name, dtype, (count,), storage=storage, stride=(step,), offset=offset)
            )
    return sources


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(), shard=st.sampled_from([1, MIB, 10 << 30]), way=st.sampled_from(["all", "add"])
)
def test_any_state_dict_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    memory: Memory,
    *,
    data: st.DataObject,
    shard: int,
    way: str,
) -> None:
    sources = data.draw(state_dicts(memory))
    path = tmp_path_factory.mktemp("save") / "model"
    control = native.Control()
    with CheckpointWriter(path, max_shard_bytes=shard, compress=True, control=control) as writer:
        writer.write(sources if way == "all" else ())
        for source in () if way == "all" else sources:
            writer.add(source)
    checkpoint = open_checkpoint(path)
    assert read_back(checkpoint) == described(memory, sources)
    assert list(checkpoint.tensors) == [source.name for source in sources]
    assert verify_checkpoint(checkpoint).problems == ()
    assert control.bytes_done == writer.bytes_total == checkpoint.size_bytes
    assert checkpoint.is_compressed == any(extent.segments for extent in checkpoint.extents)
    for extent in checkpoint.extents:
        assert extent.offset % 256 == 0
        assert all(segment.offset % SEGMENT_ALIGNMENT == 0 for segment in extent.segments)
        assert not extent.segments or any(segment.is_coded for segment in extent.segments)
    assert writer.compression is not None
    assert writer.compression.raw_bytes == checkpoint.size_bytes
    assert writer.compression.stored_bytes == checkpoint.stored_bytes
    kept = sum(
        segment.raw_bytes
        for extent in checkpoint.extents
        for segment in extent.segments
        if not segment.is_coded
    ) + sum(extent.size_bytes for extent in checkpoint.extents if not extent.segments)
    assert sum(writer.compression.kept.values()) == kept


def test_the_native_core_and_the_format_agree_on_segments() -> None:
    assert native.SEGMENT_BYTES == SEGMENT_BYTES


def test_weights_get_a_quarter_smaller_at_least(tmp_path: Path, memory: Memory) -> None:
    sources = [memory.tensor(kind, weights(2 * MIB, dtype=kind), kind) for kind in ("bfloat16",)]
    sources.append(memory.tensor("norm", weights(512, seed=1), "bfloat16"))
    sources.append(memory.tensor("scale", bytes(1000), "float32"))
    writer = save(tmp_path / "model", sources)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.encoding == "rans-f16"
    assert checkpoint.stored_bytes < 0.75 * checkpoint.size_bytes
    assert checkpoint.files[0].size_bytes < 0.75 * checkpoint.size_bytes
    assert writer.compression is not None
    assert writer.compression.kept == {"bfloat16": 1024, "float32": 1000}
    assert writer.compression.summary.startswith("compressed to 6")
    assert writer.compression.summary.endswith(
        "stored as they are: 1.0 KB of bfloat16, 1000 B of float32"
    )


@pytest.mark.parametrize(
    ("dtype", "content"),
    [
        ("float8_e4m3fn", weights(MIB)),
        ("uint8", weights(MIB)),
        ("bfloat16", np.random.default_rng(0).bytes(3 * MIB)),
        ("bfloat16", weights(100)),
    ],
    ids=["fp8", "int4", "random", "short"],
)
def test_where_nothing_gains_the_checkpoint_is_an_ordinary_one_and_that_is_said(
    tmp_path: Path, memory: Memory, dtype: str, content: bytes
) -> None:
    sources = [
        memory.tensor("a", content, dtype),
        memory.tensor("b", b"bb" * 700, "int8"),
        memory.tensor("c", content, dtype),
    ]
    memory.storage("d", content)
    sources.append(memory.view("d", dtype, (30,), storage="d", offset=9))
    writer = save(tmp_path / "model", sources)
    manifest = json.loads((tmp_path / "model" / "checkpoint.json").read_text())
    assert (manifest["version"], manifest["encoding"]) == (1, "raw")
    assert (tmp_path / "model" / "tensor_index.json").exists()
    checkpoint = open_checkpoint(tmp_path / "model")
    assert not checkpoint.is_compressed
    assert read_back(checkpoint) == described(memory, sources)
    assert verify_checkpoint(checkpoint).problems == ()
    assert writer.compression is not None
    assert writer.compression.summary.startswith("not compressed: coding gains nothing on ")
    assert f"of {dtype}" in writer.compression.summary


def test_of_short_or_other_tensors_the_files_are_those_of_a_plain_save(
    tmp_path: Path, memory: Memory
) -> None:
    sources = [memory.tensor("a", b"abc"), memory.tensor("b", weights(300), "bfloat16")]
    save(tmp_path / "asked", sources)
    with CheckpointWriter(tmp_path / "plain") as writer:
        writer.write(sources)
    assert writer.compression is None
    for name in ("tensor.data_0", "tensor_index.json", "checkpoint.json"):
        assert (tmp_path / "asked" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_readers_of_the_first_version_find_no_index(tmp_path: Path, memory: Memory) -> None:
    """They would take coded bytes for tensors."""
    save(tmp_path / "model", [memory.tensor("a", weights(MIB), "bfloat16")])
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["checkpoint.json", "compressed_index.json", "tensor.data_0"]
    assert list(list_checkpoints(tmp_path)) == ["model"]


def test_a_plain_save_over_a_compressed_one_leaves_nothing_of_it(
    tmp_path: Path, memory: Memory
) -> None:
    sources = [memory.tensor("a", weights(MIB), "bfloat16")]
    for compress in (True, False, True):
        with CheckpointWriter(tmp_path / "model", compress=compress) as writer:
            (writer.directory / "config.json").write_text("{}")
            writer.write(sources)
        checkpoint = open_checkpoint(tmp_path / "model")
        assert checkpoint.is_compressed == compress
        assert read_back(checkpoint) == described(memory, sources)
        index = "compressed_index.json" if compress else "tensor_index.json"
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(
            ["config.json", "checkpoint.json", index, "tensor.data_0"]
        )


def test_same_tensors_give_the_same_files(tmp_path: Path, memory: Memory) -> None:
    sources = [memory.tensor("a", weights(MIB), "bfloat16"), memory.tensor("b", bytes(5000))]
    save(tmp_path / "one", sources)
    save(tmp_path / "two", sources)
    for name in ("tensor.data_0", "compressed_index.json", "checkpoint.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_memory_may_be_reused_as_soon_as_add_returns(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_writer, "BATCH_BYTES", 2 * MIB)
    contents = {f"t{n}": weights(MIB + n, seed=n) for n in range(8)}
    contents["random"] = np.random.default_rng(1).bytes(2 * MIB)
    buffer = np.empty(3 * MIB, dtype=np.uint8)
    with CheckpointWriter(tmp_path / "model", max_shard_bytes=5 * MIB, compress=True) as writer:
        for name, content in contents.items():
            for dtype, count in (("bfloat16", len(content) // 2), ("uint8", len(content))):
                buffer[: len(content)] = np.frombuffer(content, dtype=np.uint8)
                writer.add(
                    Source(
                        name=f"{name}.{dtype}",
                        dtype=dtype,
                        shape=(count,),
                        stride=(1,),
                        storage_offset=0,
                        storage=(name, dtype),
                        address=buffer.ctypes.data,
                        size_bytes=len(content),
                    )
                )
                buffer[:] = 0xA5
    checkpoint = open_checkpoint(tmp_path / "model")
    assert len(checkpoint.files) > 2
    saved = read_back(checkpoint)
    for name, expected in contents.items():
        assert saved[f"{name}.bfloat16"][0] == expected
        assert saved[f"{name}.uint8"][0] == expected
    assert verify_checkpoint(checkpoint).problems == ()


def test_no_partition_is_longer_than_asked_unless_an_extent_is(
    tmp_path: Path, memory: Memory
) -> None:
    sources = [memory.tensor(f"t{n}", weights(MIB // 2, seed=n), "bfloat16") for n in range(5)]
    sources.append(memory.tensor("large", weights(3 * MIB, seed=9), "bfloat16"))
    save(tmp_path / "model", sources, max_shard_bytes=2 * MIB)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert all(file.size_bytes <= 2 * MIB for file in checkpoint.files[:-1])
    assert {extent.file for extent in checkpoint.extents} == set(range(len(checkpoint.files)))
    assert read_back(checkpoint) == described(memory, sources)


def test_a_tensor_added_later_shares_what_was_written(tmp_path: Path, memory: Memory) -> None:
    memory.storage("base", weights(MIB))
    whole = memory.view("whole", "bfloat16", (MIB,), storage="base")
    rows = memory.view("rows", "bfloat16", (10, 7), storage="base", stride=(100, 1), offset=600_000)
    with CheckpointWriter(tmp_path / "model", compress=True) as writer:
        writer.add(whole)
        writer.add(rows)
        writer.write((), aliases={"tied": "whole"})
    checkpoint = open_checkpoint(tmp_path / "model")
    assert len(checkpoint.extents) == 1
    assert checkpoint.tensors["rows"].storage_offset == 600_000
    assert checkpoint.aliases == {"tied": "whole"}
    assert read_back(checkpoint) == described(memory, [whole, rows])


def test_a_cancelled_save_leaves_nothing(tmp_path: Path, memory: Memory) -> None:
    control = native.Control()
    control.cancel()
    with (
        pytest.raises(LoadCancelledError, match="nothing was published"),
        CheckpointWriter(tmp_path / "model", control=control, compress=True) as writer,
    ):
        writer.write([memory.tensor("a", weights(MIB), "bfloat16")])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_in_the_background_fails_the_save(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = native.FileWriter

    class Failing:
        def __init__(
            self, path: str, *, threads: int, direct: bool, tuner: native.Tuner | None = None
        ) -> None:
            self._file = real(path, threads=threads, direct=direct, tuner=tuner)

        def write(self, pieces: object, control: native.Control) -> list[int]:
            raise native.NativeError(28, "No space left on device", "tensor.data_0")

        def abort(self) -> None:
            self._file.abort()

    monkeypatch.setattr(native, "FileWriter", Failing)
    with (
        pytest.raises(WriteError, match="free some space and save again"),
        CheckpointWriter(tmp_path / "model", compress=True) as writer,
    ):
        writer.write([memory.tensor("a", weights(MIB), "bfloat16")])
    assert list(tmp_path.iterdir()) == []


def test_two_tensors_of_one_name_are_refused_and_nothing_is_left(
    tmp_path: Path, memory: Memory
) -> None:
    one = memory.tensor("a", weights(MIB), "bfloat16")
    with (
        pytest.raises(InvalidRequestError, match="two tensors are named 'a'"),
        CheckpointWriter(tmp_path / "model", compress=True) as writer,
    ):
        writer.write([one, one])
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
import numpy as np
from sllm_store.checkpoint.writer import CheckpointWriter, Source
from tests.checkpoint_memory import weights
content = np.frombuffer(weights(1 << 20), dtype=np.uint8)
with CheckpointWriter(Path(sys.argv[1]), compress=True) as writer:
    for number in range(1_000_000):
        writer.add(Source(name=str(number), dtype="bfloat16", shape=(1 << 20,), stride=(1,),
                          storage_offset=0, storage=number, address=content.ctypes.data,
                          size_bytes=2 << 20))
        print(number, flush=True)
"""


def test_a_save_that_is_killed_leaves_the_old_checkpoint_and_the_next_one_cleans_up(
    tmp_path: Path, memory: Memory
) -> None:
    sources = [memory.tensor("old", weights(MIB), "bfloat16")]
    save(tmp_path / "model", sources)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline() != "5\n":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_back(open_checkpoint(tmp_path / "model")) == described(memory, sources)
    assert list(list_checkpoints(tmp_path)) == ["model"]
    save(tmp_path / "model", sources)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_files_of_a_save_are_the_golden_ones(
    tmp_path: Path, memory: Memory, golden: Path
) -> None:
    """Set SLLM_WRITE_GOLDEN=1 to write new ones; docs/format.md has to change with them."""
    sources = golden_tensors(memory)
    with CheckpointWriter(tmp_path / "model", compress=True) as writer:
        writer.write(
            sources,
            buffers=[memory.tensor("rotary.inv_freq", bytes(range(16)), "float32")],
            aliases={"head.weight": "embed.weight"},
        )
    made = {path.name: path.read_bytes() for path in sorted((tmp_path / "model").iterdir())}
    producer = json.loads(made["checkpoint.json"])["producer"]
    made["checkpoint.json"] = made["checkpoint.json"].replace(producer.encode(), b"golden")
    directory = golden / "checkpoint-v2"
    if os.environ.get("SLLM_WRITE_GOLDEN"):
        directory.mkdir(exist_ok=True)
        for name, content in made.items():
            (directory / name).write_bytes(content)
    assert made == {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_golden_checkpoint_opens_with_every_tensor_as_it_was_saved(
    memory: Memory, golden: Path
) -> None:
    checkpoint = open_checkpoint(golden / "checkpoint-v2")
    content = read_back(checkpoint)
    expected = described(memory, golden_tensors(memory))
    assert {name: content[name] for name in expected} == expected
    assert content["rotary.inv_freq"] == (bytes(range(16)), (4,), "float32")
    assert checkpoint.aliases == {"head.weight": "embed.weight"}
    assert verify_checkpoint(checkpoint).problems == ()


def golden_tensors(memory: Memory) -> list[Source]:
    """Weights out of a table, so that no library decides what they are."""
    memory.storage("embed", b"".join(few_exponents(n) for n in range(16, 16 + CODED_BYTES_MIN)))
    return [
        memory.view("embed.weight", "bfloat16", (256, 256), storage="embed"),
        memory.view("embed.row", "bfloat16", (256,), storage="embed", offset=512),
        memory.tensor("norm.weight", b"bfloat16", "bfloat16"),
        memory.tensor("mask", b"\0\1\1", "bool"),
    ]


@pytest.mark.parametrize("threads", [3, None])
def test_coding_takes_the_threads_that_it_is_given_or_all_processors(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    seen: set[int] = set()
    real = native.encode_segments_into

    def encode(segments: Any, *, threads: int, control: native.Control) -> Any:
        seen.add(threads)
        return real(segments, threads=threads, control=control)

    monkeypatch.setattr(native, "encode_segments_into", encode)
    with CheckpointWriter(tmp_path / "m", threads=threads, compress=True) as writer:
        writer.write([memory.tensor("a", weights(200_000), "bfloat16")])
    assert seen == {threads or os.cpu_count()}


def few_exponents(number: int) -> bytes:
    """Return a bfloat16 with one of 16 exponents, the nearer ones more often."""
    exponent = 120 - (number & -number).bit_length() % 16
    mantissa = number * 2654435761 >> 8 & 0x7F
    return (number % 2 << 15 | exponent << 7 | mantissa).to_bytes(2, "little")
