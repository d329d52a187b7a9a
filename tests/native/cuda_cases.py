"""What test_cuda.py runs, one case a process: a process loads one CUDA driver for good."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sllm_store import native

MIB = 1 << 20


def fake() -> Any:
    return ctypes.CDLL(os.environ["SLLM_CUDA_LIBRARY"])


def data_file(directory: Path, size: int, *, seed: int = 1) -> tuple[Path, bytes]:
    path = directory / f"data-{seed}-{size}"
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return path, content


def device_bytes(buffer: native.DeviceBuffer | native.DeviceMapping, size: int) -> bytes:
    host = ctypes.create_string_buffer(size)
    native.copy_from_device(buffer.device, buffer.address, ctypes.addressof(host), size)
    return host.raw


def raised(expected: type[Exception], call: Any, *arguments: Any, **options: Any) -> Exception:
    try:
        call(*arguments, **options)
    except expected as error:
        return error
    raise AssertionError(f"{call} did not raise {expected}")


def devices_describe_themselves(_: Path) -> None:
    assert native.cuda_available()
    assert native.cuda_unavailable_reason() == ""
    assert native.device_count() == 2
    assert native.device_uuid(0) == "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadae00"
    assert native.device_uuid(0) != native.device_uuid(1)
    assert native.device_name(1) == "Fake GPU 1"
    assert [fake().fake_cuda_retained(i) for i in range(2)] == [0, 0]
    free, total = native.device_memory(1)
    assert free == total == 1 << 30
    assert [fake().fake_cuda_retained(i) for i in range(2)] == [0, 1]
    assert fake().fake_cuda_context_depth() == 0
    error = raised(native.CudaError, native.device_memory, 2)
    assert error.args == ("there is no device 2 among 2", 101)
    raised(native.CudaError, native.device_uuid, -1)


def memory_is_freed_with_its_last_view(_: Path) -> None:
    buffer = native.DeviceBuffer(1, 1000)
    assert (buffer.device, buffer.size) == (1, 1000)
    assert buffer.__dlpack_device__() == (2, 1)
    capsule = buffer.__dlpack__(stream=1, max_version=(1, 0))
    del buffer
    gc.collect()
    assert fake().fake_cuda_live_allocations() == 1
    del capsule
    assert fake().fake_cuda_live_allocations() == 0
    buffer = native.DeviceBuffer(0, 1000)
    capsules = [buffer.__dlpack__() for _ in range(3)]
    thread = threading.Thread(target=capsules.clear)
    thread.start()
    thread.join()
    assert fake().fake_cuda_live_allocations() == 1
    del buffer
    assert fake().fake_cuda_live_allocations() == 0
    raised(ValueError, native.DeviceBuffer, 0, 0)
    raised(ValueError, native.DeviceBuffer, 0, -1)


def out_of_memory_is_code_2(_: Path) -> None:
    first = native.DeviceBuffer(0, 6 * MIB)
    error = raised(native.CudaError, native.DeviceBuffer, 0, 6 * MIB)
    assert error.args[1] == 2
    assert "6291456 bytes on device 0" in str(error)
    other = native.DeviceBuffer(1, 6 * MIB)
    del first
    again = native.DeviceBuffer(0, 6 * MIB)
    assert again.address
    assert other.address


def copies_round_trip(_: Path) -> None:
    buffer = native.DeviceBuffer(1, 1 * MIB)
    content = random.Random(3).randbytes(MIB)
    host = ctypes.create_string_buffer(content, MIB)
    native.copy_to_device(1, ctypes.addressof(host), buffer.address, MIB)
    assert device_bytes(buffer, MIB) == content
    beyond = buffer.address + 2 * MIB
    error = raised(native.CudaError, native.copy_to_device, 1, ctypes.addressof(host), beyond, MIB)
    assert error.args[1] == 1


def pinned_memory_is_registered(_: Path) -> None:
    buffer = native.HostBuffer(5 * MIB, pinned=True)
    assert fake().fake_cuda_registrations() == 1
    pool = native.SharedPool(4 * MIB)
    states = [pool.pinned]
    for _attempt in range(2):
        pool.pin()
        states.append(pool.pinned)
    assert states == [False, True, True]
    assert fake().fake_cuda_registrations() == 2
    assert [fake().fake_cuda_retained(i) for i in range(2)] == [1, 0]
    del buffer, pool
    assert fake().fake_cuda_registrations() == 0


def pinning_uses_a_context_that_exists(_: Path) -> None:
    native.device_memory(1)
    buffer = native.HostBuffer(MIB, pinned=True)
    assert [fake().fake_cuda_retained(i) for i in range(2)] == [0, 1]
    assert buffer.size == MIB


def a_load_goes_to_two_devices_through_a_ring(directory: Path) -> None:
    size, chunk, slots = 40 * MIB + 123, 2 * MIB, 3
    path, content = data_file(directory, size)
    file = native.File(str(path))
    ring = native.HostBuffer(slots * chunk, pinned=True)
    arenas = [native.DeviceBuffer(device, size) for device in range(2)]
    steps, reads, copies = [], [], []
    for step, offset in enumerate(range(0, size, chunk)):
        length = min(chunk, size - offset)
        steps.append((ring.address + step % slots * chunk, step - slots if step >= slots else -1))
        reads.append((step, 0, offset, length, 0))
        half = length // 2
        for device in range(2):
            copies.append((step, device, offset, half, 0))
            copies.append((step, device, offset + half, length - half, half))
    devices = [(arena.device, arena.address) for arena in arenas]
    for mode in ("auto", "buffered", "direct", "io_uring"):
        control = native.Control()
        report = native.run_transfer(
            [file], steps, reads, copies, devices, mode=mode, threads=4, control=control
        )
        assert control.bytes_done == report.bytes_copied == 2 * size
        assert report.bytes_direct + report.bytes_buffered == size
        assert 0 < report.read_s <= report.total_s
        assert 0 < report.copy_s <= report.total_s
        for arena in arenas:
            assert device_bytes(arena, size) == content, mode
            zeros = ctypes.create_string_buffer(size)
            native.copy_to_device(arena.device, ctypes.addressof(zeros), arena.address, size)
    assert fake().fake_cuda_live_streams() == 0
    assert fake().fake_cuda_live_events() == 0


def a_step_without_reads_is_copied(_: Path) -> None:
    host = native.HostBuffer(MIB)
    ctypes.memset(host.address, 7, MIB)
    arena = native.DeviceBuffer(0, MIB)
    native.run_transfer(
        [],
        [(host.address, -1), (host.address, 0)],
        [],
        [(0, 0, 0, 1000, 0), (1, 0, 1000, MIB - 1000, 1000)],
        [(0, arena.address)],
        mode="auto",
        threads=2,
        control=native.Control(),
    )
    assert device_bytes(arena, MIB) == b"\x07" * MIB


def parallel_transfers_do_not_disturb_each_other(directory: Path) -> None:
    size = 3 * MIB + 17

    def load(seed: int) -> bool:
        path, content = data_file(directory, size, seed=seed)
        buffers = [native.HostBuffer(MIB) for _ in range(2)]
        arena = native.DeviceBuffer(seed % 2, size)
        steps, reads, copies = [], [], []
        for step, offset in enumerate(range(0, size, MIB)):
            length = min(MIB, size - offset)
            steps.append((buffers[step % 2].address, step - 2 if step >= 2 else -1))
            reads.append((step, 0, offset, length, 0))
            copies.append((step, 0, offset, length, 0))
        native.run_transfer(
            [native.File(str(path))],
            steps,
            reads,
            copies,
            [(arena.device, arena.address)],
            mode="auto",
            threads=3,
            control=native.Control(),
        )
        return device_bytes(arena, size) == content

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(16)))
    assert fake().fake_cuda_live_allocations() == 0


def a_failing_copy_fails_the_transfer(directory: Path) -> None:
    size, chunk = 16 * MIB, MIB
    path, _ = data_file(directory, size)
    ring = native.HostBuffer(2 * chunk)
    arena = native.DeviceBuffer(0, size)
    count = size // chunk
    steps = [(ring.address + i % 2 * chunk, i - 2 if i >= 2 else -1) for i in range(count)]
    reads = [(i, 0, i * chunk, chunk, 0) for i in range(count)]
    copies = [(i, 0, i * chunk, chunk, 0) for i in range(count)]
    control = native.Control()
    error = raised(
        native.CudaError,
        native.run_transfer,
        [native.File(str(path))],
        steps,
        reads,
        copies,
        [(0, arena.address)],
        mode="auto",
        threads=4,
        control=control,
    )
    assert error.args[1] == 999, error
    assert control.bytes_done < size
    assert fake().fake_cuda_live_streams() == 0
    assert fake().fake_cuda_live_events() == 0


def a_copy_beyond_the_arena_is_refused_by_the_driver(directory: Path) -> None:
    path, _ = data_file(directory, MIB)
    host = native.HostBuffer(MIB)
    arena = native.DeviceBuffer(0, MIB)
    error = raised(
        native.CudaError,
        native.run_transfer,
        [native.File(str(path))],
        [(host.address, -1)],
        [(0, 0, 0, MIB, 0)],
        [(0, 0, 64 * MIB, MIB, 0)],
        [(0, arena.address)],
        mode="auto",
        threads=4,
        control=native.Control(),
    )
    assert error.args[1] == 1


def a_cancel_ends_a_slow_transfer(directory: Path) -> None:
    size, chunk = 64 * MIB, MIB
    path, _ = data_file(directory, size)
    ring = native.HostBuffer(2 * chunk)
    arena = native.DeviceBuffer(0, size)
    count = size // chunk
    control = native.Control()

    def cancel_after_the_first_bytes() -> None:
        assert control.wait(0, 30.0) > 0
        control.cancel()

    watcher = threading.Thread(target=cancel_after_the_first_bytes)
    watcher.start()
    raised(
        native.Cancelled,
        native.run_transfer,
        [native.File(str(path))],
        [(ring.address + i % 2 * chunk, i - 2 if i >= 2 else -1) for i in range(count)],
        [(i, 0, i * chunk, chunk, 0) for i in range(count)],
        [(i, 0, i * chunk, chunk, 0) for i in range(count)],
        [(0, arena.address)],
        mode="auto",
        threads=4,
        control=control,
    )
    watcher.join()
    assert control.cancelled
    assert 0 < control.bytes_done < size
    done = control.bytes_done
    assert fake().fake_cuda_live_streams() == 0
    assert control.bytes_done == done


def ipc_connects_two_processes(_: Path) -> None:
    arena = native.DeviceBuffer(1, 3 * MIB)
    content = random.Random(5).randbytes(3 * MIB)
    host = ctypes.create_string_buffer(content, 3 * MIB)
    native.copy_to_device(1, ctypes.addressof(host), arena.address, 3 * MIB)
    handle = arena.ipc_handle()
    assert len(handle) == 64
    error = raised(native.CudaError, native.DeviceMapping, 1, handle)
    assert error.args == ("this process exported this IPC handle: use the buffer itself", 201)
    child = subprocess.run(
        [sys.executable, __file__, "_ipc_client", handle.hex()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == str(native.crc32c(ctypes.addressof(host), 3 * MIB))
    assert device_bytes(arena, 4) == b"done"
    raised(ValueError, native.DeviceMapping, 1, b"short")
    dead = handle[:8] + (2**31 - 2).to_bytes(4, "little") + handle[12:]
    assert raised(native.CudaError, native.DeviceMapping, 1, dead).args[1] == 400
    assert raised(native.CudaError, native.DeviceMapping, 1, bytes(64)).args[1] == 1


def a_lease_ends_after_the_mapping(_: Path) -> None:
    arena = native.DeviceBuffer(0, MIB)
    child = subprocess.run(
        [sys.executable, __file__, "_lease_client", arena.ipc_handle().hex()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr


def _lease_client(handle_hex: Path) -> None:
    handle = bytes.fromhex(str(handle_hex))
    mine, owners = socket.socketpair()
    owners.settimeout(0)
    mappings = [native.DeviceMapping(0, handle, lease=mine.fileno()) for _ in range(2)]
    mine.close()
    capsules = [mapping.__dlpack__() for mapping in mappings]
    mappings.clear()
    thread = threading.Thread(target=capsules.pop)
    thread.start()
    thread.join()
    raised(BlockingIOError, owners.recv, 1)
    assert fake().fake_cuda_live_mappings() == 1
    capsules.clear()
    assert owners.recv(1) == b""
    assert fake().fake_cuda_live_mappings() == 0
    raised(native.NativeError, native.DeviceMapping, 0, handle, lease=10_000)
    assert fake().fake_cuda_live_mappings() == 0


def _ipc_client(handle_hex: Path) -> None:
    handle = bytes.fromhex(str(handle_hex))
    first = native.DeviceMapping(1, handle)
    second = native.DeviceMapping(1, handle)
    assert first.address == second.address
    assert first.size == second.size == 4 * MIB
    assert fake().fake_cuda_live_mappings() == 1
    capsule = first.__dlpack__()
    del first
    host = ctypes.create_string_buffer(3 * MIB)
    native.copy_from_device(1, second.address, ctypes.addressof(host), 3 * MIB)
    sys.stdout.write(f"{native.crc32c(ctypes.addressof(host), 3 * MIB)}\n")
    native.copy_to_device(
        1, ctypes.addressof(ctypes.create_string_buffer(b"done")), second.address, 4
    )
    del second
    assert fake().fake_cuda_live_mappings() == 1
    del capsule
    assert fake().fake_cuda_live_mappings() == 0
    third = native.DeviceMapping(1, handle)
    assert device_bytes(third, 4) == b"done"


def a_failing_driver_says_which_call(_: Path) -> None:
    assert not native.cuda_available()
    assert (
        native.cuda_unavailable_reason()
        == "cuInit failed: CUDA_ERROR_UNKNOWN (999, an error of the fake driver)"
    )
    error = raised(native.CudaError, native.DeviceBuffer, 0, 10)
    assert error.args == (native.cuda_unavailable_reason(), 999)
    raised(native.CudaError, native.device_count)
    raised(native.CudaError, native.SharedPool(MIB).pin)
    raised(native.CudaError, native.HostBuffer, MIB, pinned=True)


def buffers_may_be_alive_at_exit(_: Path) -> None:
    arena = native.DeviceBuffer(0, MIB)
    sys.modules["kept"] = arena  # type: ignore[assignment]
    globals()["kept"] = [arena, arena.__dlpack__(), native.HostBuffer(MIB, pinned=True)]


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
