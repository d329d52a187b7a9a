"""Chains: kernels that each begin while the one before it in the stream ends.

A kernel of a chain lets the next one begin at once, and waits before it reads anything but a
weight, and before it writes. It ends after the one before it has: so waiting for one is waiting for
all before it. A product thus asks for its first weights while the product before it ends, whatever
small kernels are between them. Kernels of the same step may write meanwhile, but no weight that
stays. What another stream copies is ordered by events, and nothing promises that an early read
comes after one. So chains are for recorded steps, where weights stay.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHAINED = True  # Whether there are chains at all.
_WITH_CHAINS = (9, 0)
_APART, _IN_A_CHAIN = {"chained": False}, {"chained": True, "launch_pdl": True}
_options: ContextVar[Mapping[str, bool]] = ContextVar("chain_options", default=_APART)
_broken: ContextVar[bool] = ContextVar("chain_broken", default=False)


@contextmanager
def chained_launches(device: torch.device) -> Iterator[None]:
    """Have the kernels that this thread launches meanwhile make a chain, if the device can."""
    before = _options.set(_IN_A_CHAIN if can_chain(device) else _APART)
    try:
        yield
    finally:
        _options.reset(before)


def chain_options() -> Mapping[str, bool]:
    """Return what a kernel is compiled and launched with, that it is in a chain or is not."""
    if _broken.get():
        _broken.set(False)
        return _APART
    return _options.get()


def break_chain() -> None:
    """Have the next kernel that this thread launches begin after all that it depends on.

    That is for one that comes after kernels of several streams: a chain is of one.
    """
    _broken.set(True)


@cache
def can_chain(device: torch.device) -> bool:
    """Return whether the device can, and Triton, which can from 3.4 on."""
    if not CHAINED or device.type != "cuda":
        return False
    from sllm.runtime.kernels.device.chain_links import CAN_CHAIN

    return CAN_CHAIN and torch.cuda.get_device_capability(device) >= _WITH_CHAINS
