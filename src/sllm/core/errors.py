"""Every exception of the serving layers that is not the store's."""

from __future__ import annotations


class ServingError(Exception):
    """Something serving could not do. `str(error)` says what, to what, and what to do."""


class UnsupportedModelError(ServingError, ValueError):
    """A model, or a feature of one, that the runtime does not compute."""


class CacheFullError(ServingError, MemoryError):
    """The KV cache has no room for more tokens or requests; wait until some end, or plan more."""


class BudgetError(ServingError, ValueError):
    """A memory budget that a model cannot be run in; the message names the least that suffices."""


class InvalidSamplingError(ServingError, ValueError):
    """A sampling parameter that makes no sense; the message names it."""


class NumericalError(ServingError, ArithmeticError):
    """A model computed infinities or nothing at all; the message says what may help."""
