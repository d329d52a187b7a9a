"""`sllm-store bench`: what it times, what it prints, that it checks the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sllm_store.cli.bench_loaders import Bench
from sllm_store.disks import Comparison
from sllm_store.tiers.device import visible_gpus
from tests.store_process import random_tensors, weight_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture
def model(storage: Path, write_safetensors: Callable[..., object]) -> Path:
    write_safetensors(storage / "m", size=300_000)
    return storage / "m"


def test_each_loader_is_timed_cold_and_warm(
    model: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    store = start_store(model.parent)
    done = run("bench", "m", "--address", store.address, "--runs", 2, "--device", "cpu", "--json")
    assert done.code == 0
    rows = {(row["loader"], row["state"]): row for row in done.value["rows"]}
    assert list(rows) == [
        (loader, state)
        for loader in ("store", "in-process", "safetensors")
        for state in ("cold", "warm")
    ]
    assert rows["store", "cold"]["tier"] == "disk"
    assert rows["store", "warm"]["tier"] == "host"
    for row in rows.values():
        assert len(row["seconds"]) == 2
        assert row["verified"]
        assert row["still_cached_bytes"] == 0
        assert row["gb_per_s"] == pytest.approx(done.value["size_bytes"] / row["median_s"] / 1e9)
        assert all(
            through > load
            for load, through in zip(row["seconds"], row["read_through_s"], strict=True)
        )
    assert store.client().status().leases == 0


def test_what_bounds_each_row_is_told_with_what_would_help(
    storage: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    write_checkpoint(
        storage / "big",
        {name: content[: 16 << 20] for name, content in random_tensors(3, 16 << 20).items()},
        compress=False,
    )
    store = start_store(storage, pool_bytes=64 << 20)
    arguments = ("bench", "big", "--address", store.address, "--runs", 1, "--device", "cpu")
    value = run(*arguments, "--json").value
    rows = {(row["loader"], row["state"]): row for row in value["rows"]}
    assert value["limits"]["page_cache_bytes_per_s"] > 0
    assert value["limits"]["link_bytes_per_s"] == 0
    warm = rows["in-process", "warm"]["bound"]
    assert warm["part"] == pytest.approx(warm["limit_s"] / rows["in-process", "warm"]["median_s"])
    assert rows["store", "warm"]["bound"] is None
    assert rows["store", "cold"]["predicted_s"][0] > 0
    assert rows["in-process", "cold"]["predicted_s"] == [None]
    assert value["advice"]
    done = run(*arguments)
    assert "bound by" in done.out
    assert "of it: how much of the time the slowest link alone needs" in done.err


def test_a_compressed_checkpoint_is_timed_by_the_bytes_of_its_tensors(
    storage: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    write_checkpoint(storage / "c", weight_tensors(3, 600_000), compress=True)
    store = start_store(storage)
    done = run("bench", "c", "--address", store.address, "--runs", 1, "--device", "cpu", "--json")
    assert done.code == 0
    assert done.value["size_bytes"] == sum(map(len, weight_tensors(3, 600_000).values()))
    assert [row["verified"] for row in done.value["rows"]] == [True] * 4


def test_a_pinned_checkpoint_is_pinned_afterwards(
    model: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    store = start_store(model.parent)
    assert run("pin", "m", "--address", store.address).code == 0
    done = run("bench", "m", "--address", store.address, "--runs", 1, "--device", "cpu", "--json")
    assert done.value["rows"][0]["tier"] == "disk"
    (served,) = (one for one in store.client().list_models() if one.name == "m")
    assert served.pinned


def test_a_person_gets_a_table(model: Path, run: Callable[..., Any]) -> None:
    done = run("bench", model, "--runs", 1, "--device", "cpu")
    assert done.code == 0
    for fact in ("in-process", "safetensors", "cold", "warm", "GB/s", "3.4 MB"):
        assert fact in done.out
    assert "no store is running, so it is not timed" in done.err


def test_what_the_store_does_not_serve_is_timed_without_it(
    model: Path,
    tmp_path: Path,
    start_store: Callable[..., StoreProcess],
    run: Callable[..., Any],
) -> None:
    (tmp_path / "other").mkdir()
    address = start_store(tmp_path / "other").address
    done = run("bench", model, "--address", address, "--runs", 1, "--device", "cpu", "--json")
    assert {row["loader"] for row in done.value["rows"]} == {"in-process", "safetensors"}
    assert "does not serve" in done.value["left_out"][0]


def test_a_checkpoint_of_ours_has_no_row_of_safetensors(
    model: Path, storage: Path, run: Callable[..., Any]
) -> None:
    assert run("save", "--source", model, "--name", "ours", "--storage-path", storage).code == 0
    done = run("bench", "ours", "--storage-path", storage, "--runs", 1, "--device", "cpu", "--json")
    assert {row["loader"] for row in done.value["rows"]} == {"in-process"}
    assert "safetensors cannot load sllm files" in done.value["left_out"]


def test_wrong_bytes_are_found(
    model: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Bench.measure

    def measure(self: Bench, *args: object, **kwargs: object) -> object:
        name, size, checksum = (
            self._expected[1].name,
            self._expected[1].size_bytes,
            self._expected[1].crc32c,
        )
        self._expected[1] = type(self._expected[1])(name, size, checksum ^ 1)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Bench, "measure", measure)
    done = run("bench", model, "--runs", 1, "--device", "cpu")
    assert done.code == 1
    assert "in-process loaded other bytes of layers.1.weight" in done.err


def test_devices_are_timed_and_their_bytes_checked(
    model: Path, run_apart: Callable[..., Any], fake_cuda: Path
) -> None:
    (model / "model.safetensors").rename(model.parent / "alone.safetensors")
    env = {"SLLM_CUDA_LIBRARY": str(fake_cuda)}
    saved = run_apart(
        "save", "--source", model.parent / "alone.safetensors", "--storage-path", model
    )
    assert saved.code == 0
    done = run_apart("bench", model / "alone", "--runs", 1, "--device", "cuda:1", "--json", env=env)
    assert (done.code, done.err.count("error")) == (0, 0)
    assert {row["loader"] for row in done.value["rows"]} == {"in-process"}
    assert done.value["device"] != "cpu"


def test_cufile_is_compared_and_the_outcome_told(
    model: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = Comparison(by_host=4e9, by_cufile=5e9)
    monkeypatch.setattr("sllm_store.cli.bench._compare_ways", lambda plan: compared)
    done = run("bench", model, "--runs", 1, "--device", "cpu", "--json")
    assert done.value["cufile"] == {
        "by_host_bytes_per_s": 4e9,
        "by_cufile_bytes_per_s": 5e9,
        "preferred": True,
    }
    done = run("bench", model, "--runs", 1, "--device", "cpu")
    assert "by way of host memory: 4.00 GB/s, by cuFile: 5.00" in " ".join(done.err.split())


def test_a_checkpoint_too_small_to_compare_says_nothing_of_cufile(
    model: Path, run_apart: Callable[..., Any], fake_storage: dict[str, str]
) -> None:
    saved = run_apart("save", "--source", model, "--name", "ours", "--storage-path", model.parent)
    assert saved.code == 0
    ours = model.parent / "ours"
    done = run_apart("bench", ours, "--runs", 1, "--device", "cuda", "--json", env=fake_storage)
    assert (done.code, done.value["cufile"]) == (0, None)


@pytest.mark.gpu
@pytest.mark.skipif(not visible_gpus(), reason="needs a CUDA device")
def test_every_loader_delivers_every_byte_to_a_gpu(
    model: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    address = start_store(model.parent).address
    done = run("bench", "m", "--address", address, "--device", "cuda", "--json")
    assert done.code == 0
    assert done.value["device"] == visible_gpus()[0]
    rows = [(row["loader"], row["state"]) for row in done.value["rows"] if row["verified"]]
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("device", "says"), [("tpu", "use cpu, cuda or cuda:1"), ("cuda:99", "no such GPU here")]
)
def test_a_device_that_is_not_here_is_an_error(
    model: Path, run: Callable[..., Any], device: str, says: str
) -> None:
    done = run("bench", model, "--device", device)
    assert done.code == 1
    assert says in done.err
