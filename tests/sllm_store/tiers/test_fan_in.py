"""GPUs lend their links to those whose memory they reach."""

from __future__ import annotations

import pytest

from sllm_store.errors import DeviceError, InvalidRequestError
from sllm_store.tiers.fan_in import parse_fan_in, plan_neighbours


@pytest.mark.parametrize(
    ("text", "named"), [("", ()), ("all", None), ("3", (3,)), ("0,2", (0, 2)), (" 1, 0", (1, 0))]
)
def test_gpus_are_named_by_number_or_all(text: str, named: tuple[int, ...] | None) -> None:
    assert parse_fan_in(text) == named


@pytest.mark.parametrize("text", ["-1", "0,0", "0,", "every", "0;1", "ALL"])
def test_a_bad_list_says_what_a_good_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="name GPUs by number, as in '0,2'"):
        parse_fan_in(text)


def test_every_named_gpu_lends_to_every_other() -> None:
    assert plan_neighbours(None, gpus=3, reaches=lambda _a, _b: True) == {
        0: (1, 2),
        1: (0, 2),
        2: (0, 1),
    }
    assert plan_neighbours((2,), gpus=3, reaches=lambda _a, _b: True) == {0: (2,), 1: (2,), 2: ()}
    assert plan_neighbours((), gpus=2, reaches=lambda _a, _b: True) == {0: (), 1: ()}


def test_a_gpu_lends_only_where_it_reaches() -> None:
    """Two islands of two, as some boards have them."""
    neighbours = plan_neighbours(None, gpus=4, reaches=lambda a, b: a // 2 == b // 2)
    assert neighbours == {0: (1,), 1: (0,), 2: (3,), 3: (2,)}


def test_one_gpu_has_no_neighbours() -> None:
    assert plan_neighbours(None, gpus=1, reaches=lambda _a, _b: False) == {}
    assert plan_neighbours(None, gpus=0, reaches=lambda _a, _b: False) == {}


def test_a_gpu_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="names GPU 4, but there are 2 here"):
        plan_neighbours((0, 4), gpus=2, reaches=lambda _a, _b: True)


def test_a_gpu_that_reaches_none_is_refused() -> None:
    with pytest.raises(DeviceError, match="GPU 0 cannot reach the memory of any other GPU"):
        plan_neighbours(None, gpus=2, reaches=lambda _a, _b: False)
