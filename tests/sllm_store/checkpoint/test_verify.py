"""Verification: a wrong bit is found and its tensors are named; nothing to compare is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sllm_store import native
from sllm_store.checkpoint.checksum import crc32c
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.checkpoint.verify import verify_checkpoint
from sllm_store.checkpoint.writer import CheckpointWriter
from sllm_store.errors import ChecksumError, InvalidCheckpointError, LoadCancelledError
from tests.checkpoint_memory import weights, write_as_upstream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.checkpoint_memory import Memory


@pytest.fixture
def saved(tmp_path: Path, memory: Memory) -> Path:
    """Four extents in three files: a; b and tied; c, d."""
    memory.storage("shared", bytes(range(200)))
    with CheckpointWriter(tmp_path / "m", max_shard_bytes=5000) as writer:
        writer.write(
            [
                memory.tensor("a", b"a" * 5000),
                memory.view("b", "uint8", (200,), storage="shared"),
                memory.view("tied", "uint8", (10,), storage="shared", offset=3),
                memory.tensor("c", b"c" * 4800),
            ],
            buffers=[memory.tensor("d", b"d" * 100)],
        )
    return tmp_path / "m"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_good_checkpoint_is_said_to_be_good(saved: Path) -> None:
    control = native.Control()
    report = verify_checkpoint(open_checkpoint(saved), control=control)
    report.require_good()
    assert (report.extents_total, report.extents_compared, report.bytes_read) == (4, 4, 10_100)
    assert report.summary == "all 4 extents are as they were saved"
    assert control.bytes_done == report.bytes_read


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_flipped_bit_is_found_with_file_offset_and_every_tensor_of_the_extent(
    saved: Path, mode: str
) -> None:
    flip(saved / "tensor.data_1", 7)
    report = verify_checkpoint(open_checkpoint(saved), mode=mode)
    (problem,) = report.problems
    assert (problem.path.name, problem.offset, problem.tensors) == (
        "tensor.data_1",
        0,
        ("b", "tied"),
    )
    with pytest.raises(
        ChecksumError, match=r"tensor\.data_1: 200 bytes at offset 0 \('b', 'tied'\)"
    ):
        report.require_good()


def test_all_problems_are_reported(saved: Path) -> None:
    flip(saved / "tensor.data_0", 4999)
    flip(saved / "tensor.data_2", 0)
    report = verify_checkpoint(open_checkpoint(saved))
    assert [problem.tensors for problem in report.problems] == [("a",), ("c",)]
    assert report.summary == "2 of 4 extents are bad"
    with pytest.raises(ChecksumError, match="and 1 more"):
        report.require_good()


def test_padding_may_hold_anything(saved: Path) -> None:
    flip(saved / "tensor.data_0", 5001)
    assert verify_checkpoint(open_checkpoint(saved)).problems == ()


def test_without_checksums_everything_is_read_and_that_is_said(tmp_path: Path) -> None:
    write_as_upstream(tmp_path, {"a": (b"abcd", (4,), "uint8")})
    report = verify_checkpoint(open_checkpoint(tmp_path))
    report.require_good()
    assert (report.extents_total, report.extents_compared, report.bytes_read) == (1, 0, 4)
    assert "nothing to compare" in report.summary


def test_a_file_changed_since_it_was_opened_is_not_compared(saved: Path) -> None:
    checkpoint = open_checkpoint(saved)
    (saved / "tensor.data_0").write_bytes(b"")
    with pytest.raises(InvalidCheckpointError, match="changed since it was opened"):
        verify_checkpoint(checkpoint)


def test_of_extents_that_cannot_be_read_only_those_are_reported(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = native.checksum_ranges

    def fail(file: native.File, ranges: list[tuple[int, int]], **options: object) -> list[int]:
        if any(size == 4800 for _, size in ranges):
            raise native.NativeError(5, "the disk is ill", file.path)
        return real(file, ranges, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "checksum_ranges", fail)
    (problem,) = verify_checkpoint(open_checkpoint(saved)).problems
    assert problem.tensors == ("c",)
    assert "cannot be read: " in str(problem)
    assert "the disk is ill" in str(problem)


def test_a_cancelled_verification_says_so(saved: Path) -> None:
    control = native.Control()
    control.cancel()
    with pytest.raises(LoadCancelledError, match=r"verifying .* was cancelled"):
        verify_checkpoint(open_checkpoint(saved), control=control)


@pytest.fixture
def compressed(tmp_path: Path, memory: Memory) -> Path:
    """Two extents of three segments and two, and a short one as it is."""
    with CheckpointWriter(tmp_path / "c", compress=True) as writer:
        writer.write(
            [
                memory.tensor("a", weights(1_200_000), "bfloat16"),
                memory.tensor("b", weights(700_001, seed=1), "bfloat16"),
                memory.tensor("c", b"c" * 100),
            ]
        )
    return tmp_path / "c"


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_compressed_checkpoint_is_compared_stored_and_decoded(
    compressed: Path, mode: str
) -> None:
    control = native.Control()
    checkpoint = open_checkpoint(compressed)
    report = verify_checkpoint(checkpoint, control=control, mode=mode)
    report.require_good()
    assert (report.extents_total, report.extents_compared) == (3, 3)
    assert report.bytes_read == checkpoint.stored_bytes == control.bytes_done
    assert report.bytes_decoded == 3_800_002
    assert report.summary == (
        "all 3 extents are as they were saved; 3.6 MB of them are compressed and were decoded"
    )


def test_a_flipped_bit_of_a_segment_is_found_before_it_is_decoded(compressed: Path) -> None:
    segment = open_checkpoint(compressed).extents[0].segments[1]
    flip(compressed / "tensor.data_0", segment.offset + 900)
    (problem,) = verify_checkpoint(open_checkpoint(compressed)).problems
    assert problem.tensors == ("a",)
    assert f"segment at offset {segment.offset}: CRC-32C is" in problem.what


@pytest.mark.parametrize(
    ("place", "message"), [(900, "decoded, CRC-32C is"), (0, "cannot be decoded: ")]
)
def test_a_segment_whose_checksum_was_forged_is_found_by_decoding(
    compressed: Path, place: int, message: str
) -> None:
    """900 is among the low bytes, which any decoder takes as they are; 0 is the header."""
    segment = open_checkpoint(compressed).extents[1].segments[0]
    data = bytearray((compressed / "tensor.data_0").read_bytes())
    data[segment.offset + place] ^= 4
    (compressed / "tensor.data_0").write_bytes(data)
    stored = bytes(data[segment.offset : segment.offset + segment.stored_bytes])
    manifest = (compressed / "checkpoint.json").read_text()
    forged = manifest.replace(str(segment.crc32c), str(crc32c(stored)))
    (compressed / "checkpoint.json").write_text(forged)
    (problem,) = verify_checkpoint(open_checkpoint(compressed)).problems
    assert problem.tensors == ("b",)
    assert message in problem.what


def test_segments_that_cannot_be_read_are_reported(
    compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise native.NativeError(5, "the disk is ill", "tensor.data_0")

    monkeypatch.setattr(native, "run_transfer", fail)
    problems = verify_checkpoint(open_checkpoint(compressed)).problems
    assert [problem.tensors for problem in problems] == [("a",), ("b",)]
    assert all("cannot be read: " in problem.what for problem in problems)
