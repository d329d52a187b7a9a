"""A head start has every byte on a GPU before anybody asks, or leaves all of it to them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sllm_store import native
from sllm_store.errors import CheckpointNotFoundError, DeadlineError
from sllm_store.groups import head_start
from sllm_store.groups.head_start import HeadStart
from tests.native.fake_driver import build_fake_cuda

if TYPE_CHECKING:
    from sllm_store.groups.stored import StoredModel

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def fake_cuda() -> Path:
    return build_fake_cuda(ROOT / "build" / "fake_cuda")


def _run(path: Path, fake: Path, *, device: int = 1, budget: int = 0, **fakes: str) -> list[str]:
    command = [sys.executable, "-m", "tests.sllm_store.groups.head_start_cases"]
    ran = subprocess.run(
        [*command, str(path), str(device), str(budget)],
        cwd=ROOT,
        env={**os.environ, "SLLM_CUDA_LIBRARY": str(fake), **fakes},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    return ran.stdout.split(maxsplit=1)


def test_every_tensor_arrives_as_it_is_stored(model: StoredModel, fake_cuda: Path) -> None:
    taken, found = _run(model.checkpoint.path, fake_cuda)
    assert int(taken) >= sum(tensor.size_bytes for tensor in model.tensors)
    assert found.strip() == "equal"


@pytest.mark.parametrize(
    ("device", "budget", "fakes"),
    [
        (1, 300_000, {}),
        (1, 0, {"FAKE_CUDA_MEMORY": "300000"}),
        (7, 0, {}),
        (0, 0, {"FAKE_CUDA_FAIL": "cuMemcpyHtoDAsync_v2"}),
    ],
)
def test_without_room_or_a_gpu_that_works_nothing_is_there(
    model: StoredModel, fake_cuda: Path, *, device: int, budget: int, fakes: dict[str, str]
) -> None:
    found = _run(model.checkpoint.path, fake_cuda, device=device, budget=budget, **fakes)[1]
    assert found.strip() == "nothing"


def test_a_machine_without_a_gpu_has_the_checkpoint_opened(model: StoredModel) -> None:
    if native.cuda_available():
        pytest.skip("there is a GPU here")
    ahead = HeadStart(model.checkpoint.path, device=0)
    assert ahead.stored(60).checkpoint.files == model.checkpoint.files
    assert ahead.taken_bytes(60) == 0
    assert ahead.arrived(60) is None
    ahead.close()
    ahead.close()


def test_what_is_not_there_is_said_to_who_waits(tmp_path: Path) -> None:
    ahead = HeadStart(tmp_path / "nothing", device=0)
    for wait in (ahead.stored, ahead.taken_bytes, ahead.arrived):
        with pytest.raises(CheckpointNotFoundError):
            wait(60)
    ahead.close()


def test_many_bytes_are_waited_for_longer(
    model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def wait(_: object, timeout_s: float) -> None:
        waited.append(timeout_s)

    ahead = HeadStart(model.checkpoint.path, device=999)
    assert ahead.arrived() is None
    monkeypatch.setattr(HeadStart, "taken_bytes", lambda _: 40_000_000_000)
    monkeypatch.setattr(head_start, "_wait", wait)
    assert ahead.arrived() is None
    assert waited == [4300.0]  # 40 GB come in 320 s from a disk of 125 MB/s.
    ahead.close()


def test_a_wait_has_an_end(model: StoredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    may_open = threading.Event()

    def open_late(path: Path) -> StoredModel:
        assert path == model.checkpoint.path
        assert may_open.wait(60)
        return model

    monkeypatch.setattr(head_start, "open_stored", open_late)
    ahead = HeadStart(model.checkpoint.path, device=0)
    with pytest.raises(DeadlineError, match=r"within 0\.01 s"):
        ahead.stored(0.01)
    may_open.set()
    assert ahead.stored(60) is model
    ahead.close()
