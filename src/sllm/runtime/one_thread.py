"""Let PyTorch compute on the calling thread alone where that is little.

A sampler's operations over a vocabulary are just large enough for PyTorch to wake its threads.
These then spin for milliseconds, on processors that the native products of the next pass need.
"""

from __future__ import annotations

from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_lock = Lock()  # A thread that begins takes over the number that was set last, by any thread.


def on_one_thread(
    function: Callable[Concatenate[torch.Tensor, _Parameters], _Result],
) -> Callable[Concatenate[torch.Tensor, _Parameters], _Result]:
    """Return a function of a tensor that computes on its caller's thread, if that is on the CPU."""

    @wraps(function)
    def alone(
        tensor: torch.Tensor, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        threads = torch.get_num_threads()
        if tensor.device.type != "cpu" or threads == 1:
            return function(tensor, *args, **kwargs)
        with _lock:
            torch.set_num_threads(1)
            try:
                return function(tensor, *args, **kwargs)
            finally:
                torch.set_num_threads(threads)

    return alone


def settle_threads() -> None:
    """Let the calling thread take over PyTorch's number of threads while nobody is alone."""
    with _lock:
        torch.get_num_threads()
