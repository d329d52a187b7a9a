"""`sllm-store doctor`: facts, verdicts, advice."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest

from sllm_store import disks
from sllm_store.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess

PROBE: dict[str, Any] = {
    "io_uring": True,
    "io_uring_reason": "",
    "direct_alignment": 512,
    "cachestat": True,
    "huge_pages": "madvise",
    "kernel": "6.8",
    "file_system": "ext4",
}


def findings(done: Any) -> dict[str, dict[str, str]]:
    """Return what --json printed, by topic."""
    return {finding["topic"]: finding for finding in done.value}


def test_every_line_has_a_fact_and_bad_ones_say_what_to_do(
    storage: Path, run: Callable[..., Any]
) -> None:
    done = run("doctor", "--storage-path", storage, "--json")
    assert done.code == 0
    found = findings(done)
    assert found.keys() >= {
        *("storage path", "system", "file system", "io_uring", "read mode", "huge pages"),
        *("open files", "locked memory", "memory", "shared memory", "store", "torch"),
    }
    for finding in found.values():
        assert finding["fact"]
        assert finding["verdict"] in {"ok", "note", "warn", "bad"}
        assert finding["advice"] or finding["verdict"] == "ok"


def test_it_is_readable(storage: Path, run: Callable[..., Any]) -> None:
    out = run("doctor", "--storage-path", storage).out
    assert "auto reads" in out
    assert str(storage) in out


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({}, "(cachestat tells) from there, all else directly with io_uring"),
        ({"io_uring": False, "io_uring_reason": "off"}, "all else directly with pread threads"),
        ({"cachestat": False}, "(mincore tells)"),
        ({"direct_alignment": 0}, "because the file system has no direct reads"),
    ],
    ids=["all", "no io_uring", "no cachestat", "no direct reads"],
)
def test_it_explains_the_mode_of_reading(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    fact: str,
) -> None:
    monkeypatch.setattr("sllm_store.native.probe", lambda path: PROBE | changed)
    assert fact in findings(run("doctor", "--json"))["read mode"]["fact"]


def test_it_says_what_was_learnt_about_the_disk(
    storage: Path,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
) -> None:
    monkeypatch.setattr("sllm_store.native.probe", lambda path: PROBE)
    # Loads of other tests may have taught this session's own memory about the same disk.
    environment["XDG_CACHE_HOME"] = str(storage.parent / "cache")
    memory = disks.disk_memory(environment)
    disk = disks.disk_of(storage)
    asked = ("doctor", "--storage-path", storage, "--json")
    assert "nothing learnt about it yet" in findings(run(*asked))["disk"]["fact"]
    tuner = memory.tuner(disk, "queued reads")
    tuner.begin(1)
    for i in range(200):
        tuner.add(1 << 24, i / 250)
    memory.keep(disk, "queued reads")
    fact = findings(run(*asked))["disk"]["fact"]
    assert disk.name in fact
    assert "queued reads: 1 thread, 16 of 1.0 MB in flight" in fact
    assert "still learning" in fact


def test_it_tells_huge_pages_of_the_pool_from_those_of_other_memory(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "shmem_enabled").write_text("always within_size advise [never] deny force\n")
    monkeypatch.setattr("sllm_store.cli.doctor._HUGE_PAGES", tmp_path)
    found = findings(run("doctor", "--json"))
    assert found["huge pages"]["verdict"] == "ok"
    assert found["huge pages (pool)"]["verdict"] == "note"
    assert found["huge pages (pool)"]["fact"].startswith("never, for the store's pool")
    assert found["huge pages (pool)"]["advice"].endswith(f"advise > {tmp_path}/shmem_enabled")


def test_a_kernel_without_huge_pages_is_only_worth_a_note(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllm_store.cli.doctor._HUGE_PAGES", tmp_path / "none")
    done = run("doctor", "--json")
    assert done.code == 0
    assert findings(done)["huge pages (pool)"]["verdict"] == "note"


def test_a_file_as_storage_path_is_bad(tmp_path: Path, run: Callable[..., Any]) -> None:
    (tmp_path / "file").touch()
    done = run("doctor", "--storage-path", tmp_path / "file", "--json")
    assert done.code == 1
    assert findings(done)["storage path"]["verdict"] == "bad"


def test_a_missing_storage_path_is_only_worth_a_note(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    done = run("doctor", "--storage-path", tmp_path / "a" / "b", "--json")
    assert done.code == 0
    assert findings(done)["storage path"]["verdict"] == "note"


def test_few_descriptors_are_worth_a_warning(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    finding = findings(run("doctor", "--json"))["open files"]
    assert (finding["verdict"], finding["fact"]) == (
        "warn",
        "RLIMIT_NOFILE is 1024 of at most 4096",
    )
    assert "ulimit -n 4096" in finding["advice"]


def test_it_says_why_there_is_no_gpu(storage: Path, run_apart: Callable[..., Any]) -> None:
    env = {"SLLM_CUDA_LIBRARY": "/none/libcuda.so"}
    finding = findings(run_apart("doctor", "--storage-path", storage, "--json", env=env))["GPU"]
    assert finding["verdict"] == "note"
    assert "/none/libcuda.so" in finding["fact"]


def test_it_says_whether_cufile_is_worth_it(
    storage: Path, run_apart: Callable[..., Any], fake_storage: dict[str, str]
) -> None:
    def finding(**variables: str) -> dict[str, str]:
        env = fake_storage | variables
        done = run_apart("doctor", "--storage-path", storage, "--json", env=env)
        return findings(done)["cuFile"]

    missing = finding(SLLM_CUFILE_LIBRARY="/none/libcufile.so")
    assert missing["fact"].startswith("not available: no cuFile: /none/libcufile.so")
    assert "not compared yet: auto reads by way of host memory" in finding()["fact"]
    assert "sllm-store bench NAME" in finding()["advice"]
    memory = disks.disk_memory(fake_storage)
    for by_cufile, says in ((2e9, "auto does without it"), (9e9, "auto takes it")):
        comparison = disks.Comparison(by_host=4e9, by_cufile=by_cufile)
        memory.keep_comparison(disks.disk_of(storage), comparison)
        found = finding()
        assert found["verdict"] == "ok"
        assert f"at {format_size(int(by_cufile))}/s" in found["fact"]
        assert f"{says} in loads without a store" in found["fact"]


def test_without_a_gpu_it_says_nothing_of_cufile(
    storage: Path, run_apart: Callable[..., Any]
) -> None:
    env = {"SLLM_CUDA_LIBRARY": "/none/libcuda.so"}
    done = run_apart("doctor", "--storage-path", storage, "--json", env=env)
    assert "cuFile" not in findings(done)


def test_it_lists_the_gpus(storage: Path, run_apart: Callable[..., Any], fake_cuda: Path) -> None:
    env = {"SLLM_CUDA_LIBRARY": str(fake_cuda)}
    found = findings(run_apart("doctor", "--storage-path", storage, "--json", env=env))
    for topic in ("GPU 0", "GPU 1"):
        assert found[topic]["verdict"] == "ok"
        assert "free of" in found[topic]["fact"]


def test_it_finds_the_running_store(
    storage: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    address = start_store(storage).address
    finding = findings(run("doctor", "--address", address, "--json"))["store"]
    assert finding["verdict"] == "ok"
    assert finding["fact"].startswith(f"running at {address}")
    finding = findings(run("doctor", "--json"))["store"]
    assert finding["verdict"] == "note"
    assert finding["fact"].startswith("no store is running at ")
