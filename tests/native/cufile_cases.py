"""What test_cufile.py runs, one case a process: a process loads one cuFile for good."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import sys
from pathlib import Path
from typing import Any

from sllm_store import native

MIB = 1 << 20


def fake() -> Any:
    return ctypes.CDLL(os.environ["SLLM_CUFILE_LIBRARY"])


def fake_cuda() -> Any:
    return ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])


def data_file(directory: Path, size: int, *, seed: int = 1) -> tuple[native.File, bytes]:
    path = directory / f"data-{seed}-{size}"
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return native.File(str(path)), content


def device_bytes(buffer: native.DeviceBuffer) -> bytes:
    host = ctypes.create_string_buffer(buffer.size)
    native.copy_from_device(buffer.device, buffer.address, ctypes.addressof(host), buffer.size)
    return host.raw


def run(
    files: list[native.File], plan: dict[str, Any], devices: list[tuple[int, int]]
) -> tuple[native.TransferReport, native.Control]:
    control = native.Control()
    report = native.run_transfer(
        files,
        plan["steps"],
        plan["reads"],
        plan["copies"],
        devices,
        decodes=plan.get("decodes", ()),
        mode="cufile",
        threads=4,
        control=control,
    )
    return report, control


def raised(
    expected: type[Exception],
    plan: dict[str, Any],
    files: list[native.File],
    devices: list[tuple[int, int]],
) -> Any:
    try:
        run(files, plan, devices)
    except expected as error:
        return error
    raise AssertionError(f"no {expected}")


def through_a_ring(size: int, ring: native.HostBuffer, chunk: int) -> dict[str, Any]:
    """As a load without a store reads: chunk by chunk through slots of a ring."""
    slots = ring.size // chunk
    plan: dict[str, Any] = {"steps": [], "reads": [], "copies": []}
    for step, offset in enumerate(range(0, size, chunk)):
        length = min(chunk, size - offset)
        after = step - slots if step >= slots else -1
        plan["steps"].append((ring.address + step % slots * chunk, after))
        plan["reads"].append((step, 0, offset, length, 0))
        plan["copies"].append((step, 0, offset, length, 0))
    return plan


def simple(directory: Path) -> tuple[list[native.File], dict[str, Any], native.DeviceBuffer]:
    """A file of 8 MiB to a device, in steps of 2."""
    file, _ = data_file(directory, 8 * MIB)
    arena = native.DeviceBuffer(0, file.size)
    return [file], through_a_ring(file.size, native.HostBuffer(6 * MIB), 2 * MIB), arena


def bytes_pass_the_host_by(directory: Path) -> None:
    file, content = data_file(directory, 11 * MIB + 123)
    ring = native.HostBuffer(6 * MIB)
    arena = native.DeviceBuffer(1, file.size)
    plan = through_a_ring(file.size, ring, 2 * MIB)
    report, control = run([file], plan, [(1, arena.address)])
    assert device_bytes(arena) == content
    assert ctypes.string_at(ring.address, ring.size) == bytes(ring.size)
    assert (report.bytes_direct, report.bytes_buffered) == (file.size, 0)
    assert report.bytes_copied == 0
    assert control.bytes_done == file.size
    assert fake().fake_cufile_reads() >= 6
    assert fake_cuda().fake_cuda_live_streams() == 0


def a_step_with_other_work_is_read_as_usual(directory: Path) -> None:
    """One step is also copied to the host, so its buffer is needed; its neighbour is not."""
    file, content = data_file(directory, 4 * MIB)
    buffers = [native.HostBuffer(2 * MIB) for _ in range(2)]
    arena = native.DeviceBuffer(0, file.size)
    there = native.HostBuffer(2 * MIB)
    plan = {
        "steps": [(buffer.address, -1) for buffer in buffers],
        "reads": [(step, 0, step * 2 * MIB, 2 * MIB, 0) for step in range(2)],
        "copies": [
            (0, 0, 0, 2 * MIB, 0),
            (0, 1, 0, 2 * MIB, 0),
            (1, 0, 2 * MIB, 2 * MIB, 0),
        ],
    }
    report, control = run([file], plan, [(0, arena.address), (-1, there.address)])
    assert device_bytes(arena) == content
    for buffer in (there, buffers[0]):
        assert ctypes.string_at(buffer.address, buffer.size) == content[: 2 * MIB]
    assert ctypes.string_at(buffers[1].address, 2 * MIB) == bytes(2 * MIB)
    assert report.bytes_copied == 4 * MIB
    assert control.bytes_done == 6 * MIB


def bytes_that_nobody_reads_are_counted(directory: Path) -> None:
    """Tensors that are aligned in the arena and not in the file leave gaps between reads."""
    file, content = data_file(directory, MIB)
    buffer = native.HostBuffer(2 * MIB)
    arena = native.DeviceBuffer(0, MIB + 4096)
    plan = {
        "steps": [(buffer.address, -1)],
        "reads": [(0, 0, 100, 5000, 4096), (0, 0, 5100, 7000, 9216), (0, 0, 0, 50, 1 << 20)],
        "copies": [(0, 0, 512, 5120 + 7000, 4096)],
    }
    report, control = run([file], plan, [(0, arena.address)])
    found = device_bytes(arena)
    assert found[512:5512] == content[100:5100]
    assert found[5632:12632] == content[5100:12100]
    assert found[:512] + found[5512:5632] + found[12632:] == bytes(512 + 120 + arena.size - 12632)
    assert report.bytes_direct == 12000
    assert control.bytes_done == 12120


def reads_to_two_devices_arrive_on_both(directory: Path) -> None:
    file, content = data_file(directory, 3 * MIB)
    buffer = native.HostBuffer(3 * MIB)
    arenas = [native.DeviceBuffer(device, 2 * MIB) for device in range(2)]
    plan = {
        "steps": [(buffer.address, -1)],
        "reads": [(0, 0, 0, 3 * MIB, 0)],
        "copies": [(0, 0, 0, 2 * MIB, 0), (0, 1, 0, 2 * MIB, MIB)],
    }
    report, _ = run([file], plan, [(device, arenas[device].address) for device in range(2)])
    assert device_bytes(arenas[0]) == content[: 2 * MIB]
    assert device_bytes(arenas[1]) == content[MIB:]
    assert report.bytes_direct == 4 * MIB


def a_request_that_makes_no_sense_is_refused(directory: Path) -> None:
    files, plan, arena = simple(directory)
    where = [(0, arena.address)]
    for changed in (
        {"copies": [(0, 1, 0, 10, 0)]},
        {"copies": [(0, 0, -1, 10, 0)]},
        {"reads": [(0, 0, 0, 10, -1)]},
        {"reads": [(9, 0, 0, 10, 0)]},
        {"steps": [(0, -1)] * 4},
    ):
        raised(ValueError, plan | changed, files, where)
    run(files, plan, where)


def files_are_registered_once(directory: Path) -> None:
    files, plan, arena = simple(directory)
    for _ in range(2):
        run(files, plan, [(0, arena.address)])
    assert fake().fake_cufile_handles() == 1
    files.clear()
    assert fake().fake_cufile_handles() == 0


def a_failing_read_names_the_reason(directory: Path) -> None:
    files, plan, arena = simple(directory)
    error = raised(native.NativeError, plan, files, [(0, arena.address)])
    assert (error.errno, error.filename) == (errno.EIO, files[0].path)
    assert "cuFile cannot read " in error.strerror
    assert error.strerror.endswith(" to device 0: CU_FILE_INTERNAL_ERROR (5030)")


def a_failing_read_has_its_errno(directory: Path) -> None:
    files, plan, arena = simple(directory)
    error = raised(native.NativeError, plan, files, [(0, arena.address)])
    assert (error.errno, error.filename) == (errno.ENODATA, files[0].path)
    assert error.strerror.endswith(" to device 0: No data available")


def a_refused_file_is_an_error(directory: Path) -> None:
    files, plan, arena = simple(directory)
    error = raised(native.NativeError, plan, files, [(0, arena.address)])
    assert (error.errno, error.filename) == (errno.EOPNOTSUPP, files[0].path)
    assert error.strerror == "cuFile refused the file: CU_FILE_INTERNAL_ERROR (5030)"


def opening_fails(directory: Path) -> None:
    reason = "cuFileDriverOpen failed: CU_FILE_INTERNAL_ERROR (5030)"
    assert native.cufile_unavailable_reason() == reason
    files, plan, arena = simple(directory)
    error = raised(native.NativeError, plan, files, [(0, arena.address)])
    assert error.errno == errno.EOPNOTSUPP
    assert error.strerror == f"cuFile is not available ({reason}); use mode 'auto'"


def there_is_no_library(directory: Path) -> None:
    reason = native.cufile_unavailable_reason()
    assert reason.startswith("no cuFile: ")
    assert "/no/such/libcufile.so" in reason
    files, plan, arena = simple(directory)
    assert reason in raised(native.NativeError, plan, files, [(0, arena.address)]).strerror


def standard_input_stays_open(_: Path) -> None:
    before = os.fstat(0)
    assert native.cufile_unavailable_reason() == ""
    assert os.fstat(0) == before


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
