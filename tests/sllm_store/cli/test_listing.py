"""`sllm-store list` and `show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.store_process import weight_tensors, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture
def models(storage: Path, write_safetensors: Callable[..., object]) -> Path:
    write_safetensors(storage / "org" / "m")
    write_safetensors(storage / "broken")
    (storage / "broken" / "model.safetensors").write_bytes(b"\xff" * 16)
    return storage


def test_a_running_store_tells_what_is_in_memory(
    models: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    store = start_store(models)
    store.client().set_pinned("org/m", pinned=True)
    value = run("list", "--address", store.address, "--json").value
    assert value["store"] == store.address
    broken, model = value["models"]
    assert broken["name"] == "broken"
    assert "model.safetensors" in broken["error"]
    assert (model["name"], model["format"], model["tensors"]) == ("org/m", "safetensors", 3)
    assert model["pinned"]
    assert model["host_bytes"] > 0
    text = run("list", "--address", store.address).out
    assert "pinned" in text
    assert "broken: " in text


@pytest.mark.parametrize("as_json", [True, False])
def test_without_a_store_the_storage_path_is_read(
    models: Path,
    run: Callable[..., Any],
    as_json: bool,  # noqa: FBT001
) -> None:
    done = run("list", "--storage-path", models, *(["--json"] if as_json else []))
    assert done.code == 0
    if as_json:
        assert done.value["store"] is None
        assert [model["name"] for model in done.value["models"]] == ["broken", "org/m"]
    else:
        assert done.err == f"read from {models}, which no running store serves\n"
        assert "11.7 KB" in done.out


def test_what_compression_came_to_is_shown(
    storage: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    write_checkpoint(storage / "c", weight_tensors(2, 200_000), compress=True)
    store = start_store(storage)
    for place in (("--address", store.address), ("--storage-path", storage)):
        (model,) = run("list", *place, "--json").value["models"]
        assert model["stored_bytes"] < 0.8 * model["size_bytes"]
        assert "compressed to 6" in run("list", *place).out
    shown = run("show", "c", "--storage-path", storage)
    assert "rans-f16, compressed to 6" in shown.out
    value = run("show", "c", "--storage-path", storage, "--json").value
    assert value["encoding"] == "rans-f16"
    assert value["stored_bytes"] < value["size_bytes"] == 200_000 + 200_026 + 208


def test_a_store_that_was_named_must_run(models: Path, run: Callable[..., Any]) -> None:
    done = run("list", "--storage-path", models, "--address", "unix:/none")
    assert done.code == 1
    assert "no store is running at unix:/none" in done.err


def test_a_storage_path_named_beside_the_store_wins(
    models: Path,
    tmp_path: Path,
    start_store: Callable[..., StoreProcess],
    run: Callable[..., Any],
) -> None:
    address = start_store(models).address
    (tmp_path / "empty").mkdir()
    options = ("--address", address, "--json", "--storage-path")
    assert run("list", *options, tmp_path / "empty").value["models"] == []
    assert run("list", *options, models).value["store"] == address


def test_an_empty_storage_path_says_what_to_do(storage: Path, run: Callable[..., Any]) -> None:
    done = run("list", "--storage-path", storage)
    assert (done.code, done.out) == (0, "")
    assert "save one with `sllm-store save`" in done.err


def test_show_tells_tensors_files_and_tiers(
    models: Path, start_store: Callable[..., StoreProcess], run: Callable[..., Any]
) -> None:
    store = start_store(models)
    with store.client() as client:
        loaded = [client.load("org/m") for _ in range(2)]  # One that reads, one like the next.
        value = run("show", "org/m", "--address", store.address, "--json").value
        said = run("show", "org/m", "--address", store.address).out
        del loaded
    assert value["estimate"]["device"] == "cpu"
    assert value["estimate"]["seconds"] > 0
    assert "s to host memory (learned from " in said
    assert value["path"] == str(models / "org" / "m")
    assert value["tensors"][1] == {
        "name": "layers.1.weight",
        "dtype": "float32",
        "shape": [1001],
        "size_bytes": 4004,
        "buffer": False,
    }
    (file,) = value["files"]
    assert file["path"].endswith("model.safetensors")
    assert value["small_files"] == ["config.json", "tokenizer_config.json"]
    assert value["tiers"]["host_bytes"] > 0
    assert value["tiers"]["leases"] == 2
    assert value["tiers"]["disk_bytes"] == file["size_bytes"]


def test_show_is_readable(models: Path, run: Callable[..., Any]) -> None:
    text = run("show", "org/m", "--storage-path", models).out
    assert "a load now" not in text  # No store is there to say.
    for fact in ("org/m", "safetensors", "layers.2.weight", "1002", "in the page cache"):
        assert fact in text


def test_show_of_a_broken_one_names_the_file(models: Path, run: Callable[..., Any]) -> None:
    done = run("show", "broken", "--storage-path", models)
    assert done.code == 1
    assert str(models / "broken" / "model.safetensors") in done.err
