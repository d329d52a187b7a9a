"""Which GPUs lend their links to loads of others: those named, to those that they reach.

Bytes to one GPU at L bytes/s a link take C / L; with n neighbours they take C / (n + 1) / L, as
long as the host's memory delivers (n + 1) L, and the links between the GPUs are faster still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sllm_store.errors import DeviceError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ALL_GPUS = "all"


def parse_fan_in(text: str) -> tuple[int, ...] | None:
    """Return the GPUs that '0,2' names, none for '', and None for 'all'."""
    if text == ALL_GPUS:
        return None
    try:
        ordinals = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        ordinals = [-1]
    if any(ordinal < 0 for ordinal in ordinals) or len(set(ordinals)) < len(ordinals):
        raise InvalidRequestError(
            f"fan-in {text!r}: name GPUs by number, as in '0,2', each once, or 'all'"
        )
    return tuple(ordinals)


def plan_neighbours(
    named: Sequence[int] | None, *, gpus: int, reaches: Callable[[int, int], bool]
) -> dict[int, tuple[int, ...]]:
    """Return for each GPU those whose links a load of it may use; None names all.

    reaches(a, b) says whether a copies straight into b's memory. Raises InvalidRequestError for a
    GPU that does not exist, DeviceError for one that reaches no other.
    """
    if named is not None and any(ordinal >= gpus for ordinal in named):
        raise InvalidRequestError(
            f"fan-in names GPU {max(named)}, but there are {gpus} here, counted from 0"
        )
    if gpus < 2:
        return {}
    neighbours: dict[int, tuple[int, ...]] = dict.fromkeys(range(gpus), ())
    for ordinal in range(gpus) if named is None else named:
        reached = [other for other in range(gpus) if other != ordinal and reaches(ordinal, other)]
        if not reached:
            raise DeviceError(
                f"GPU {ordinal} cannot reach the memory of any other GPU, so it cannot lend its "
                "link: leave it out of --fan-in, or see `nvidia-smi topo -p2p r` for what can"
            )
        for other in reached:
            neighbours[other] += (ordinal,)
    return neighbours
