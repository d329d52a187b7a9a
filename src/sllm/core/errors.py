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


class ContextLengthError(ServingError, ValueError):
    """A prompt that does not fit the model's context; the message says by how much."""


class QueueFullError(ServingError):
    """Too many requests wait already. `retry_after_s` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosedError(ServingError):
    """The model was unloaded before the request was over."""


class ModelNotFoundError(ServingError, LookupError):
    """A name that no model on this machine has; the message names what may have been meant."""


class InvalidRequestError(ServingError, ValueError):
    """A request that makes no sense, or asks for what the model cannot do; names the field."""


class PullError(ServingError):
    """A model that could not be fetched; the message says why, and what to do. Nothing is left."""


class LibraryError(ServingError):
    """What is kept about the models on this machine cannot be read, or is in use for too long."""


class ServerError(ServingError):
    """A server that does not answer, or that answered with an error; the message is its own."""


class SettingsError(ServingError, ValueError):
    """A server that cannot be started as it was asked for; the message names the setting."""


class SlowClientError(ServingError):
    """A client that reads an answer so slowly that too much of it would have to be kept."""
