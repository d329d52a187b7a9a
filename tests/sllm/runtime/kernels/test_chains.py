"""Launches are told that they are in a chain where one was asked for and the device can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm.runtime.kernels.chains import can_chain, chain_options, chained_launches

if TYPE_CHECKING:
    import torch


def test_a_chain_is_of_the_launches_in_its_context(device: torch.device) -> None:
    apart = {"chained": False}
    linked = {"chained": True, "launch_pdl": True} if can_chain(device) else apart
    assert chain_options() == apart
    with chained_launches(device):
        assert chain_options() == linked
    assert chain_options() == apart
