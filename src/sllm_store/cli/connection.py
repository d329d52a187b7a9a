"""Reaching a store: the one that a command needs, or the one that happens to run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sllm_store.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sllm_store.client import SllmStoreClient


@contextmanager
def connected(address: str | None) -> Iterator[SllmStoreClient]:
    """Yield a client of the store; raise StoreUnavailableError if none runs there."""
    with if_running(address or _default()) as client:
        assert client is not None
        yield client


@contextmanager
def if_running(address: str | None) -> Iterator[SllmStoreClient | None]:
    """Yield a client of the store at the address, which must run.

    Without an address, yield a client of the user's own store, or None if it does not run.
    """
    from sllm_store.client import SllmStoreClient, is_running

    target = address or _default()
    if is_running(target):
        with SllmStoreClient(target) as client:
            yield client
    elif address is None:
        yield None
    else:
        raise StoreUnavailableError(
            f"no store is running at {target}: start one with `sllm-store start`"
        )


def _default() -> str:
    from sllm_store.client import default_address

    return default_address()
