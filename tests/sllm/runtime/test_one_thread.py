"""PyTorch's threads are set aside for a call, and are as many as before afterwards."""

from __future__ import annotations

from threading import Barrier, Thread
from typing import TYPE_CHECKING

import pytest
import torch

from sllm.runtime.one_thread import on_one_thread, settle_threads

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@on_one_thread
def count(_tensor: torch.Tensor) -> int:
    return torch.get_num_threads()


@on_one_thread
def fail(_tensor: torch.Tensor) -> None:
    raise ValueError("the tensor is wrong")


def test_a_call_has_one_thread_and_its_caller_the_others_again() -> None:
    assert count(torch.zeros(1)) == 1
    assert torch.get_num_threads() == 2


def test_a_call_that_raises_gives_the_threads_back() -> None:
    with pytest.raises(ValueError, match="wrong"):
        fail(torch.zeros(1))
    assert torch.get_num_threads() == 2


def test_what_is_elsewhere_keeps_the_threads() -> None:
    assert count(torch.zeros(1, device="meta")) == 2


def test_a_thread_that_begins_meanwhile_has_all_of_them() -> None:
    found = []
    inside, begun = Barrier(2), Barrier(2)

    @on_one_thread
    def wait(_tensor: torch.Tensor) -> None:
        inside.wait(10)
        begun.wait(10)

    def begin() -> None:
        inside.wait(10)
        begun.wait(10)
        settle_threads()
        found.append(torch.get_num_threads())

    thread = Thread(target=begin)
    thread.start()
    wait(torch.zeros(1))
    thread.join()
    assert found == [2]
