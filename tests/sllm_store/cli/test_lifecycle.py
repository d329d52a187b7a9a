"""`sllm-store stop` and `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm_store.tiers.device import visible_gpus

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


def test_stop_ends_the_store_and_waits_for_its_end(
    start: Callable[..., subprocess.Popen[str]],
    run: Callable[..., Any],
    environment: dict[str, str],
    storage: Path,
) -> None:
    process = start("--storage-path", storage)
    done = run("stop")
    assert process.wait(timeout=5) == 0
    assert done.code == 0
    assert done.out.startswith(f"stopped the store at unix:{environment['XDG_RUNTIME_DIR']}")
    assert run("stop").code == 1


def test_stop_without_a_store_says_so(run: Callable[..., Any], tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    done = run("stop", "--address", address)
    assert (done.code, done.err) == (
        1,
        f"error: no store is running at {address}: start one with `sllm-store start`\n",
    )


def test_stop_says_when_the_store_does_not_end_in_time(
    start_store: Callable[..., StoreProcess], run: Callable[..., Any], storage: Path
) -> None:
    store = start_store(storage)
    done = run("stop", "--address", store.address, "--timeout", "0")
    assert done.code == 1
    assert "did not end within 0 s" in done.err


def test_stop_goes_by_the_unix_socket_because_the_kernel_knows_who_listens_there(
    start_store: Callable[..., StoreProcess], run: Callable[..., Any], storage: Path
) -> None:
    store = start_store(storage, host="127.0.0.1", port=0)
    tcp = store.addresses[1]
    done = run("stop", "--address", tcp)
    assert done.code == 1
    assert f"{tcp} does not tell which process" in done.err
    assert store.process.poll() is None
    assert run("stop", "--address", store.address).code == 0
    assert store.process.poll() == 0


def test_status_tells_a_person(
    start_store: Callable[..., StoreProcess], run: Callable[..., Any], storage: Path
) -> None:
    store = start_store(storage)
    done = run("status", "--address", store.address)
    assert done.code == 0
    for fact in (store.address, str(store.pid), str(storage), "0 B of 64.0 MB in use"):
        assert fact in done.out


def test_status_tells_a_program(
    start_store: Callable[..., StoreProcess], run: Callable[..., Any], storage: Path
) -> None:
    store = start_store(storage)
    value = run("status", "--address", store.address, "--json").value
    assert value["address"] == store.address
    assert value["pid"] == store.pid
    assert value["pool_bytes"] == 64 << 20
    assert value["storage_path"] == str(storage)
    assert value["devices"] == list(visible_gpus())


def test_status_without_a_store_says_how_to_start_one(run: Callable[..., Any]) -> None:
    done = run("status")
    assert done.code == 1
    assert done.err.endswith("start one with `sllm-store start`\n")
