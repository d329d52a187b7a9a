"""Which disk a path is on, and what is remembered about it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from sllm_store import disks, native

MIB = 1 << 20
DISK = disks.Disk(id="block-vda-100", name="vda", kind="virtual")
READS = "queued reads"


def make_block(sysfs: Path, number: str, name: str, attributes: dict[str, str]) -> Path:
    block = sysfs / "devices" / name
    for attribute, value in attributes.items():
        path = block / attribute
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    (sysfs / number).symlink_to(block)
    return block


def number_of(path: Path) -> str:
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


@pytest.mark.parametrize(
    ("name", "attributes", "kind"),
    [
        ("vda", {"queue/rotational": "1", "size": "100"}, "virtual"),
        ("sda", {"queue/rotational": "1", "device/vendor": "QEMU"}, "virtual"),
        ("sda", {"queue/rotational": "1", "device/vendor": "ATA"}, "spinning"),
        ("sdb", {"queue/rotational": "0", "device/vendor": "ATA"}, "flash"),
        ("nvme0n1", {"queue/rotational": "0", "serial": "S 1/2"}, "flash"),
        ("md0", {"queue/rotational": "0", "slaves/a": "", "slaves/b": ""}, "array"),
        ("dm-0", {"queue/rotational": "0", "slaves/a": ""}, "flash"),
    ],
)
def test_kinds_of_disks_are_told_apart(
    tmp_path: Path, name: str, attributes: dict[str, str], kind: str
) -> None:
    make_block(tmp_path, number_of(tmp_path), name, attributes)
    disk = disks.disk_of(tmp_path, tmp_path)
    assert (disk.name, disk.kind) == (name, kind)
    assert disk.id.startswith(f"block-{name}")
    assert "/" not in disk.id
    assert " " not in disk.id


def test_a_partition_is_on_its_disk(tmp_path: Path) -> None:
    make_block(tmp_path, "none", "vda", {"size": "100", "queue/rotational": "1"})
    make_block(tmp_path, number_of(tmp_path), "vda/vda1", {"partition": "1", "size": "50"})
    assert disks.disk_of(tmp_path, tmp_path) == DISK


def test_a_file_system_without_a_block_device_is_known_by_its_id(tmp_path: Path) -> None:
    disk = disks.disk_of(tmp_path, tmp_path / "missing")
    assert (disk.id, disk.kind) == (f"fs-{os.statvfs(tmp_path).f_fsid:x}", "unknown")
    with pytest.raises(FileNotFoundError):
        disks.disk_of(tmp_path / "missing")


def teach(tuner: native.Tuner, *, windows: int = 3, rate: float = 4e9) -> None:
    tuner.begin(16)
    now_s = 0.0
    until = tuner.windows + windows
    while tuner.windows < until:
        now_s += MIB / rate
        tuner.add(MIB, now_s)
    tuner.end()


def test_what_is_learnt_is_there_in_the_next_process(tmp_path: Path) -> None:
    memory = disks.DiskMemory(tmp_path / "disks")
    tuner = memory.tuner(DISK, READS)
    assert tuner is memory.tuner(DISK, READS)
    assert tuner.best == (1, 16, MIB)
    teach(tuner, windows=40)
    assert tuner.refused
    memory.keep(DISK, READS)
    later = disks.DiskMemory(tmp_path / "disks")
    known = later.recall(DISK)[READS]
    assert known == disks.Learnt(
        best=tuner.best,
        rate=tuner.rate,
        refused=tuple(tuner.refused),
        settled=tuner.settled,
    )
    again = later.tuner(DISK, READS)
    assert (again.best, again.rate, again.refused) == (tuner.best, tuner.rate, tuner.refused)
    assert later.tuner(DISK, "writes").rate == 0


def test_the_ways_of_using_a_disk_are_kept_side_by_side(tmp_path: Path) -> None:
    memory = disks.DiskMemory(tmp_path)
    for use, rate in zip(disks.USES, (4e9, 2e9, 3e9, 1e9), strict=True):
        teach(memory.tuner(DISK, use), rate=rate)
        memory.keep(DISK, use)
    known = disks.DiskMemory(tmp_path).recall(DISK)
    assert [round(known[use].rate / 1e9) for use in disks.USES] == [4, 2, 3, 1]


def test_a_comparison_is_kept_beside_what_is_learnt(tmp_path: Path) -> None:
    memory = disks.DiskMemory(tmp_path)
    assert memory.recall_comparison(DISK) is None
    teach(memory.tuner(DISK, READS))
    memory.keep(DISK, READS)
    comparison = disks.Comparison(by_host=4e9, by_cufile=5e9)
    memory.keep_comparison(DISK, comparison)
    teach(memory.tuner(DISK, READS))
    memory.keep(DISK, READS)
    later = disks.DiskMemory(tmp_path)
    assert later.recall_comparison(DISK) == comparison
    assert READS in later.recall(DISK)


@pytest.mark.parametrize("comparison", [7, {}, {"by_host": 1}, {"by_host": "x", "by_cufile": 1}])
def test_a_damaged_comparison_is_as_good_as_none(tmp_path: Path, comparison: object) -> None:
    text = json.dumps({"version": 1, "uses": {}, "comparison": comparison})
    (tmp_path / f"{DISK.id}.json").write_text(text)
    assert disks.DiskMemory(tmp_path).recall_comparison(DISK) is None


@pytest.mark.parametrize(
    ("by_host", "by_cufile", "preferred"),
    [
        (4e9, 6e9, True),
        (4e9, 4.1e9, False),
        (4e9, 1e9, False),
        (0, 1, False),
        (float("nan"), 1, False),
        (1, float("nan"), False),
    ],
)
def test_a_little_faster_is_not_faster(
    by_host: float, by_cufile: float, *, preferred: bool
) -> None:
    assert disks.Comparison(by_host=by_host, by_cufile=by_cufile).prefers_cufile is preferred


def test_nothing_is_written_where_nothing_was_learnt(tmp_path: Path) -> None:
    memory = disks.DiskMemory(tmp_path)
    memory.keep(DISK, READS)
    memory.tuner(DISK, READS)
    memory.keep(DISK, READS)
    assert list(tmp_path.iterdir()) == []
    teach(memory.tuner(DISK, READS))
    memory.keep(DISK, READS)
    written = (tmp_path / f"{DISK.id}.json").stat().st_ino
    memory.keep(DISK, READS)
    assert (tmp_path / f"{DISK.id}.json").stat().st_ino == written
    assert len(list(tmp_path.iterdir())) == 1


def record(**changes: object) -> object:
    best = {"best": [1, 32, MIB], "rate": 4e9, "refused": [[1, 16, MIB, 0.9]], "settled": False}
    return {"version": 1, "uses": {READS: best | changes}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\xff\xfe",
        '{"version": 1}',
        '{"version": 2, "uses": {}}',
        '{"version": 1, "uses": []}',
        json.dumps(record(best=[1, 2])),
        json.dumps(record(best=[1, -2, 3])),
        json.dumps(record(best=[True, 16, MIB])),
        json.dumps(record(best="xyz")),
        json.dumps(record(best=[1, 1 << 80, 3])),
        json.dumps(record(rate="fast")),
        json.dumps(record(rate=float("nan"))),
        json.dumps(record(best=[1, 16, 3])),
        json.dumps(record(refused=[[1, 2]])),
        json.dumps(record(refused=7)),
        "[" * 5000,
        json.dumps(record()) + " " * disks.RECORD_BYTES_MAX + "x",
    ],
)
def test_a_damaged_record_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{DISK.id}.json").write_text(text, encoding="latin-1")
    memory = disks.DiskMemory(tmp_path)
    tuner = memory.tuner(DISK, READS)
    if len(text) < disks.RECORD_BYTES_MAX:
        assert tuner.best == (1, 16, MIB)
    teach(tuner)
    memory.keep(DISK, READS)
    assert disks.DiskMemory(tmp_path).recall(DISK)[READS].rate == pytest.approx(4e9, rel=0.05)


def test_a_sound_record_is_used(tmp_path: Path) -> None:
    (tmp_path / f"{DISK.id}.json").write_text(json.dumps(record()))
    tuner = disks.DiskMemory(tmp_path).tuner(DISK, READS)
    assert (tuner.best, tuner.rate, tuner.refused) == ((1, 32, MIB), 4e9, [(1, 16, MIB, 0.9)])


@pytest.mark.parametrize("place", ["/proc/nothing", "/dev/null/x"])
def test_a_cache_that_cannot_be_written_is_done_without(place: str) -> None:
    memory = disks.DiskMemory(Path(place))
    teach(memory.tuner(DISK, READS))
    memory.keep(DISK, READS)
    assert memory.recall(DISK) == {}


def test_writers_side_by_side_leave_a_whole_record(tmp_path: Path) -> None:
    def write() -> None:
        memory = disks.DiskMemory(tmp_path)
        for _ in range(20):
            teach(memory.tuner(DISK, READS), windows=1)
            memory.keep(DISK, READS)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        known = disks.DiskMemory(tmp_path).recall(DISK)
        assert not known or known[READS].rate > 0
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == [f"{DISK.id}.json"]


def test_the_cache_is_the_user_s(tmp_path: Path) -> None:
    directory = tmp_path / "serverless-llm" / "disks"
    memory = disks.disk_memory({"XDG_CACHE_HOME": str(tmp_path)})
    teach(memory.tuner(DISK, READS))
    memory.keep(DISK, READS)
    assert (directory / f"{DISK.id}.json").is_file()
    assert memory is disks.disk_memory({"XDG_CACHE_HOME": str(tmp_path), "HOME": "/x"})
    assert memory is not disks.disk_memory({"HOME": str(tmp_path)})


def test_learning_keeps_what_a_failed_transfer_saw_too(tmp_path: Path) -> None:
    memory = disks.DiskMemory(tmp_path / "disks")

    def transfer() -> None:
        with disks.learning(memory, tmp_path, READS) as tuner:
            assert tuner is not None
            teach(tuner)
            raise RuntimeError("the load failed")

    with pytest.raises(RuntimeError, match="the load failed"):
        transfer()
    assert disks.DiskMemory(tmp_path / "disks").recall(disks.disk_of(tmp_path))


def test_a_path_without_a_disk_teaches_nothing(tmp_path: Path) -> None:
    memory = disks.DiskMemory(tmp_path / "disks")
    with disks.learning(memory, tmp_path / "missing", READS) as tuner:
        assert tuner is None


def test_the_read_mode_decides_what_is_learnt() -> None:
    assert disks.read_use("direct") == "reads by threads"
    queues = native.has_queues("auto")
    assert disks.read_use("auto") == (READS if queues else "reads by threads")
