"""A transfer that makes no sense is refused before anything moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sllm_store import native

if TYPE_CHECKING:
    from pathlib import Path

MAX = 2**63 - 1
BUFFER = native.HostBuffer(1 << 20)


@pytest.fixture
def file(tmp_path: Path) -> native.File:
    (tmp_path / "data").write_bytes(bytes(1000))
    return native.File(str(tmp_path / "data"))


def run(file: native.File, **changes: Any) -> native.TransferReport:
    arguments: dict[str, Any] = {
        "files": [file],
        "steps": [(BUFFER.address, -1), (BUFFER.address, 0)],
        "reads": [(0, 0, 0, 100, 0), (1, 0, 100, 100, 0)],
        "copies": [],
        "devices": [],
        "mode": "auto",
        "threads": 2,
        "control": native.Control(),
    }
    return native.run_transfer(**(arguments | changes))


def test_the_plain_request_works(file: native.File) -> None:
    assert run(file).total_s > 0


def test_reads_that_were_parsed_before_are_the_same_reads(file: native.File) -> None:
    reads = native.Reads([(0, 0, 0, 100, 0), (1, 0, 100, 100, 0)])
    assert len(reads) == 2
    for _ in range(2):
        assert run(file, reads=reads).bytes_buffered == run(file).bytes_buffered == 200
    with pytest.raises(ValueError, match="read 0"):
        run(file, reads=native.Reads([(2, 0, 0, 100, 0)]))


def test_a_transfer_calls_back_and_ends_when_that_raises(file: native.File) -> None:
    called: list[str] = []
    report = run(file, meanwhile=lambda: called.append("meanwhile"), watch=lambda: None)
    assert (called, report.bytes_buffered) == (["meanwhile"], 200)
    control = native.Control()
    with pytest.raises(ZeroDivisionError):
        run(file, meanwhile=lambda: 1 // 0, control=control)
    assert control.cancelled


def test_what_a_transfer_fails_of_is_told_after_what_goes_on_meanwhile(file: native.File) -> None:
    called: list[str] = []
    with pytest.raises(ValueError, match="mode 'fast'"):
        run(file, mode="fast", meanwhile=lambda: called.append("meanwhile"))
    with pytest.raises(native.NativeError):
        run(file, reads=[(0, 0, 900, 101, 0)], meanwhile=lambda: called.append("meanwhile"))
    assert called == ["meanwhile"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, "mode 'fast' is none of"),
        ({"threads": 0}, "threads is 0, not 1 to 64"),
        ({"threads": 65}, "threads is 65"),
        ({"steps": [(4096, 0)], "reads": []}, "step 0: it can only wait for an earlier step"),
        ({"steps": [(4096, -1), (4096, 1)], "reads": []}, "step 1: it can only wait"),
        ({"steps": [(4096, -2)], "reads": []}, "step 0: it can only wait"),
        ({"steps": [(-1, -1)], "reads": []}, "buffer_address is negative"),
        ({"steps": [(0, -1)], "reads": [(0, 0, 0, 1, 0)]}, "read 0: its step has no buffer"),
        ({"reads": [(2, 0, 0, 1, 0)]}, "read 0: there is no step 2 among 2"),
        ({"reads": [(-1, 0, 0, 1, 0)]}, "read 0: there is no step -1"),
        ({"reads": [(0, 1, 0, 1, 0)]}, "read 0: there is no file 1 among 1"),
        ({"reads": [(1, 0, 0, 1, 0), (0, 0, 0, 1, 0)]}, "read 1: reads are not sorted"),
        ({"reads": [(0, 0, -1, 1, 0)]}, "read 0: file_offset -1"),
        ({"reads": [(0, 0, 0, -1, 0)]}, "read 0: file_offset 0 with size -1"),
        ({"reads": [(0, 0, 1, MAX, 0)]}, "read 0: file_offset 1"),
        ({"reads": [(0, 0, 0, 1, -1)]}, "read 0: step_offset -1"),
        ({"reads": [(0, 0, 0, 1, MAX)]}, "read 0: step_offset"),
        ({"reads": [(0, 0, 0, 1, MAX - 1)]}, "read 0: it ends beyond the address space"),
        ({"copies": [(0, 0, 0, 1, 0)]}, "copy 0: there is no device 0 among 0"),
        ({"copies": [(5, 0, 0, 1, 0)], "devices": [(0, 1)]}, "copy 0: there is no step 5"),
        ({"copies": [(0, 0, -1, 1, 0)], "devices": [(0, 1)]}, "copy 0: device_offset -1"),
        ({"copies": [(0, 0, 0, -1, 0)], "devices": [(0, 1)]}, "copy 0: device_offset 0"),
        ({"copies": [(0, 0, 0, 1, -1)], "devices": [(0, 1)]}, "copy 0: step_offset -1"),
        ({"copies": [(0, 0, MAX, 0, 0)], "devices": [(0, 1)]}, "device 0: base address 1"),
        (
            {"copies": [(1, 0, 0, 1, 0), (0, 0, 0, 1, 0)], "devices": [(0, 1)]},
            "copy 1: copies are not sorted",
        ),
        ({"devices": [(-2, 1)]}, "device 0: its ordinal is -2"),
        ({"devices": [(0, 1, [0])]}, "device 0: it cannot go via 0"),
        ({"devices": [(0, 1, [-1])]}, "device 0: it cannot go via -1"),
        ({"devices": [(0, 1, [2, 1, 2])]}, "device 0: it cannot go via 2"),
        ({"devices": [(0, 1, range(1, 17))]}, "device 0: it names more than 15 GPUs"),
        ({"devices": [(-1, 1, [0])]}, "device 0: nothing goes to host memory via GPUs"),
    ],
)
def test_a_bad_request_says_what_is_wrong(
    file: native.File, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(file, **changes)


SEGMENT = native.SEGMENT_BYTES


@pytest.mark.parametrize(
    ("decodes", "message"),
    [
        ([(2, 0, 0, 1, 1, 0)], "decode 0: there is no step 2 among 2"),
        ([(0, 2, 0, 1, 1, 0)], "decode 0: there is no device 2 among 2"),
        ([(1, 0, 0, 1, 1, 0), (0, 0, 0, 1, 1, 0)], "decode 1: decodes are not sorted by step"),
        ([(0, 0, 0, 0, 1, 0)], f"decode 0: raw_size is 0, not 1 to {SEGMENT}"),
        ([(0, 0, 0, SEGMENT + 1, 1, 0)], f"decode 0: raw_size is {SEGMENT + 1}"),
        ([(0, 0, 0, 1, 0, 0)], "decode 0: stored_size is 0"),
        ([(0, 0, 0, 1, -1, 0)], "decode 0: stored_size is -1"),
        ([(0, 0, 0, 1, SEGMENT + 1, 0)], "decode 0: stored_size is 1048577"),
        ([(0, 0, -1, 1, 1, 0)], "decode 0: device_offset -1 with size 1"),
        ([(0, 0, MAX, 1, 1, 0)], "decode 0: device_offset"),
        ([(0, 0, MAX - 9, 9, 1, 0)], "device 0: base address"),
        ([(0, 0, 0, 1, 1, -1)], "decode 0: step_offset -1"),
        ([(0, 0, 0, 1, 1, MAX)], "decode 0: step_offset"),
        ([(0, 0, 0, 1, 1, 100)], "decode 0: its segment is not within what its step reads"),
        ([(0, 0, 0, 1, 2, 99)], "decode 0: its segment is not within what its step reads"),
        ([(0, 1, 8, 1, 2, 0)], "decode 0: its destination is not a multiple of 16"),
        ([(0, 1, 0, 1, 2, 8)], "decode 0: its place in memory is not a multiple of 16"),
    ],
)
def test_a_bad_decode_says_what_is_wrong(
    file: native.File, decodes: list[tuple[int, int, int, int, int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(file, decodes=decodes, devices=[(-1, BUFFER.address), (0, BUFFER.address)])


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": [(0,)]},
        {"devices": [(0, 1, 2)]},
        {"decodes": [(0, 0, 0, 1, 1)]},
        {"files": [None]},
        {"steps": [(1,)]},
        {"reads": 5},
        {"threads": "2"},
        {"steps": [(2**70, -1)]},
    ],
)
def test_a_wrong_type_is_a_type_error(file: native.File, changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        run(file, **changes)
