"""A load lets a client's memory go before the client is told, however the load ended."""

from __future__ import annotations

import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from sllm_store import native
from sllm_store.errors import InvalidRequestError, ReadError
from sllm_store.server import loading
from sllm_store.server.loading import Loading, WantedLoad
from sllm_store.server.loads import LoadJob
from sllm_store.server.plans import Plans
from tests.sllm_store.server.test_plans import entry_of


class _Mapping:
    device = 0
    address = 1 << 20

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("sizes", "error"), [([1 << 20, 1 << 20], ReadError), ([1 << 20, 1], InvalidRequestError)]
)
def test_a_clients_memory_is_closed_while_the_error_is_still_held(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], error: type[Exception]
) -> None:
    opened: list[weakref.ref[_Mapping]] = []

    def open_handle(_device: str, _handle: bytes) -> _Mapping:
        mapping = _Mapping(sizes[len(opened)])
        opened.append(weakref.ref(mapping))
        return mapping

    def load_device(*_arguments: Any) -> None:
        assert all(mapping() is not None for mapping in opened)
        raise ReadError("the disk is gone")

    monkeypatch.setattr(loading, "open_handle", open_handle)
    planned = Plans().plan(entry_of("m", 4), {"": "gpu0", "l.1": "gpu1"})
    targets: list[tuple[Any, Any]] = [
        (arena, SimpleNamespace(device=gpu, ipc_handle=b"", offset_bytes=0))
        for gpu, arena in planned.on_gpus
    ]
    engine: Any = SimpleNamespace(
        loader=SimpleNamespace(load_device=load_device),
        catalog=SimpleNamespace(require_current=lambda _: None),
    )
    job = LoadJob(holder="me", control=native.Control(), deadline_s=time.monotonic() + 60)
    with pytest.raises(error) as caught:
        Loading(engine).run(WantedLoad(planned=planned, targets=targets, shared=[]), job)
    assert caught.tb is not None
    assert len(opened) == 2
    assert all(mapping() is None for mapping in opened)
