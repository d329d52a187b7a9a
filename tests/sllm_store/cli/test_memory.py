"""`sllm-store pin`, `unpin`, `unload` and `clear`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.store_process import StoreProcess


@pytest.fixture
def store(
    storage: Path,
    write_safetensors: Callable[..., object],
    start_store: Callable[..., StoreProcess],
) -> StoreProcess:
    write_safetensors(storage / "m")
    return start_store(storage)


def test_a_pinned_model_is_in_memory_until_it_is_unloaded(
    store: StoreProcess, run: Callable[..., Any]
) -> None:
    client = store.client()
    assert run("pin", "m", "--address", store.address).code == 0
    assert client.list_models()[0].pinned
    assert run("unpin", "m", "--address", store.address).code == 0
    assert not client.list_models()[0].pinned
    assert client.list_models()[0].host_bytes > 0
    assert run("unload", "m", "--address", store.address).code == 0
    assert client.list_models()[0].host_bytes == 0


def test_a_model_may_be_given_by_its_path(
    store: StoreProcess, storage: Path, run: Callable[..., Any]
) -> None:
    client = store.client()
    assert run("pin", storage / "m", "--address", store.address).code == 0
    assert client.list_models()[0].pinned
    assert run("unpin", storage / "m", "--address", store.address).code == 0
    assert not client.list_models()[0].pinned
    assert run("unload", storage / "m", "--address", store.address).code == 0
    assert client.list_models()[0].host_bytes == 0
    done = run("pin", storage.parent, "--address", store.address)
    assert done.code == 1
    assert "is not the name of a checkpoint" in done.err


@pytest.fixture
def gpu_store(
    storage: Path,
    write_safetensors: Callable[..., object],
    start_store: Callable[..., StoreProcess],
    fake_cuda: Path,
) -> StoreProcess:
    write_safetensors(storage / "m")
    return start_store(storage, env={"SLLM_CUDA_LIBRARY": str(fake_cuda)})


def test_a_model_may_be_pinned_on_a_gpu(
    gpu_store: StoreProcess, fake_cuda: Path, run_apart: Callable[..., Any]
) -> None:
    client = gpu_store.client()

    def run(*args: str) -> Any:
        gpus = {"SLLM_CUDA_LIBRARY": str(fake_cuda)}
        return run_apart(*args, "--address", gpu_store.address, env=gpus)

    pinned = run("pin", "m", "--device", "cuda:1")
    assert (pinned.code, pinned.out) == (0, "m is loaded and stays in memory of cuda:1\n")
    (arena,) = client.list_models()[0].resident
    assert arena.pinned
    assert arena.device.endswith("01")
    assert "pinned on 1 GPU" in run("list").out
    assert f"on GPU {arena.device}, pinned" in run("show", "m").out
    assert f"{arena.device} (" in run("status").out
    refused = run("rm", "m", "--yes")
    assert f"sllm-store unpin m --device {arena.device}" in refused.err
    assert run("unpin", "m", "--device", arena.device).code == 0
    assert client.list_models()[0].resident == ()
    assert run("pin", "m", "--device", "cuda").code == 0
    assert run("unload", "m").code == 0
    assert client.list_models()[0].resident == ()
    assert "GPUs 0 to 1 are visible" in run("pin", "m", "--device", "cuda:7").err
    assert "no GPU tpu is visible" in run("pin", "m", "--device", "tpu").err


def test_without_a_gpu_pinning_on_one_says_why(
    store: StoreProcess, run_apart: Callable[..., Any]
) -> None:
    nothing = {"SLLM_CUDA_LIBRARY": "libnothing.so"}
    done = run_apart("pin", "m", "--device", "cuda", "--address", store.address, env=nothing)
    assert done.code == 1
    assert "no GPU is visible here (" in done.err
    assert "libnothing.so" in done.err


def test_clear_empties_the_pool(store: StoreProcess, run: Callable[..., Any]) -> None:
    assert run("pin", "m", "--address", store.address).code == 0
    assert run("clear", "--address", store.address).out == "the store's memory is empty\n"
    assert store.client().status().pool_used_bytes == 0


@pytest.mark.parametrize("command", ["pin", "unpin", "unload"])
def test_an_unknown_name_is_an_error(
    store: StoreProcess, run: Callable[..., Any], command: str
) -> None:
    done = run(command, "none", "--address", store.address)
    assert done.code == 1
    assert "no checkpoint 'none'" in done.err


@pytest.mark.parametrize("args", [["pin", "m"], ["unpin", "m"], ["unload", "m"], ["clear"]])
def test_without_a_store_they_say_how_to_start_one(
    run: Callable[..., Any], args: list[str]
) -> None:
    done = run(*args)
    assert done.code == 1
    assert "start one with `sllm-store start`" in done.err
