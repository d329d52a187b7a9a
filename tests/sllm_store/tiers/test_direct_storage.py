"""When cuFile reads, and what is remembered of how it compares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sllm_store import native
from sllm_store.disks import Comparison, disk_memory, disk_of
from sllm_store.tiers.direct_storage import choose_mode, compare_ways, recall_comparison

MB = 1 << 20
FASTER = Comparison(by_host=4e9, by_cufile=6e9)
SLOWER = Comparison(by_host=4e9, by_cufile=4.1e9)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[native.File]:
    """Two files that are on the disk alone, on a machine that seems to have cuFile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sllm_store.native.cufile_unavailable_reason", str)
    found = []
    for name in ("a", "b"):
        path = tmp_path / name
        path.write_bytes(os.urandom(MB))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found.append(native.File(str(path)))
        found[-1].evict()
    return found


def remember(files: list[native.File], comparison: Comparison) -> None:
    memory = disk_memory(os.environ)
    memory.keep_comparison(disk_of(Path(files[0].path)), comparison)


def test_auto_takes_cufile_only_where_it_was_measured_to_be_faster(
    files: list[native.File], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [choose_mode("auto", files, only_copies=True)]
    for comparison in (SLOWER, FASTER):
        remember(files, comparison)
        assert recall_comparison(Path(files[1].path)) == comparison
        chosen.append(choose_mode("auto", files, only_copies=True))
    assert chosen == ["auto", "auto", "cufile"]
    monkeypatch.setattr("sllm_store.native.cufile_unavailable_reason", lambda: "gone")
    assert choose_mode("auto", files, only_copies=True) == "auto"


def test_what_is_in_the_page_cache_is_read_from_there(files: list[native.File]) -> None:
    remember(files, FASTER)
    buffer = native.HostBuffer(MB)
    files[0].read_into(0, buffer.address, MB)
    files[1].read_into(0, buffer.address, MB // 2)
    assert choose_mode("auto", files, only_copies=True) == "auto"


def test_loads_that_do_more_than_copy_to_gpus_are_read_as_usual(files: list[native.File]) -> None:
    remember(files, FASTER)
    assert choose_mode("auto", files, only_copies=False) == "auto"
    assert choose_mode("cufile", files, only_copies=False) == "auto"
    assert choose_mode("cufile", files, only_copies=True) == "cufile"
    assert choose_mode("cufile", [], only_copies=True) == "cufile"


@pytest.mark.parametrize("mode", ["buffered", "direct", "io_uring"])
def test_a_mode_that_somebody_asked_for_stays(files: list[native.File], mode: str) -> None:
    remember(files, FASTER)
    assert choose_mode(mode, files, only_copies=True) == mode


def test_files_that_are_too_small_are_not_compared(files: list[native.File]) -> None:
    assert compare_ways(files, 0) is None
    assert recall_comparison(Path(files[0].path)) is None


def test_nothing_is_known_of_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert recall_comparison(tmp_path / "none") is None


@pytest.mark.parametrize(
    "case",
    [
        "both_ways_are_measured_and_remembered",
        "a_forced_load_passes_the_host_by",
        "a_remembered_comparison_decides",
        "a_load_that_also_goes_to_the_host_is_read_as_usual",
        "without_cufile_nothing_is_compared",
    ],
)
def test_case(fake_storage: dict[str, str], tmp_path: Path, case: str) -> None:
    cases = "tests.sllm_store.tiers.direct_storage_cases"
    done = subprocess.run(
        [sys.executable, "-m", cases, case, str(tmp_path)],
        env=os.environ | fake_storage,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
