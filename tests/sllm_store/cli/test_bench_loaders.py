"""The loaders that are timed, and the check of what they deliver."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.cli.bench_loaders import Bench, InProcess, Safetensors, Store
from sllm_store.errors import ChecksumError, InUseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture
def model(storage: Path) -> Path:
    return storage / "m"


@pytest.fixture
def contents(model: Path, write_safetensors: Callable[..., dict[str, bytes]]) -> dict[str, bytes]:
    return write_safetensors(model)


def test_every_loader_says_where_the_bytes_are(
    model: Path, contents: dict[str, bytes], start_store: Callable[..., StoreProcess]
) -> None:
    client = start_store(model.parent).client()
    checkpoint = open_checkpoint(model)
    loaders = (
        Store(client, "m", "cpu"),
        InProcess(model, "cpu"),
        Safetensors(checkpoint, "cpu"),
    )
    for loader in loaders:
        loaded = loader.load()
        addresses = loaded.addresses()
        for name, content in contents.items():
            assert ctypes.string_at(addresses[name], len(content)) == content, loader.name


def test_a_cold_load_comes_from_disk_and_a_warm_one_from_memory(
    model: Path, contents: dict[str, bytes], start_store: Callable[..., StoreProcess]
) -> None:
    assert contents
    store = Store(start_store(model.parent).client(), "m", "cpu")
    bench = Bench(open_checkpoint(model))
    tiers = [bench.measure(store, cold=cold).tier for cold in (True, False, True, False, False)]
    assert tiers == ["disk", "host", "disk", "host", "host"]
    measured = bench.measure(InProcess(model, "cpu"), cold=True)
    assert 0 < measured.load_s < measured.read_through_s


def test_a_store_does_not_forget_what_others_use(
    model: Path, contents: dict[str, bytes], start_store: Callable[..., StoreProcess]
) -> None:
    assert contents
    process = start_store(model.parent, unload_timeout_s=0.2)
    held = process.client().load("m")
    store = Store(process.client(), "m", "cpu")
    with pytest.raises(InUseError, match="m is in use by"):
        Bench(open_checkpoint(model)).measure(store, cold=True)
    del held


def test_a_loader_that_delivers_other_bytes_is_found_out(
    model: Path, contents: dict[str, bytes]
) -> None:
    class Wrong:
        """Delivers the same bytes for each tensor."""

        name = "wrong"
        tier = "thin air"

        def forget(self) -> None:
            self.buffer = ctypes.create_string_buffer(1)

        def predict(self) -> None:
            """Nobody knows."""

        def load(self) -> Wrong:
            self.buffer = ctypes.create_string_buffer(contents["layers.0.weight"] + bytes(64))
            return self

        def addresses(self) -> Mapping[str, int]:
            return dict.fromkeys(contents, ctypes.addressof(self.buffer))

    with pytest.raises(ChecksumError, match=r"wrong loaded other bytes of layers\.1\.weight"):
        Bench(open_checkpoint(model)).measure(Wrong(), cold=False)


def test_what_is_expected_is_read_from_the_files(model: Path, contents: dict[str, bytes]) -> None:
    expected = Bench(open_checkpoint(model))._expected
    assert {tensor.name: tensor.size_bytes for tensor in expected} == {
        name: len(content) for name, content in contents.items()
    }
