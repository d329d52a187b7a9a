"""Loading on request, keeping, switching, and the ends of all that."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from sllm.core.errors import EngineClosedError, ModelNotFoundError, QueueFullError
from sllm.gateway.host import ModelHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sllm.gateway.backing import Backing
    from sllm.gateway.settings import Settings
    from sllm.library.models import Library
    from tests.sllm.gateway.scripted import Script


class Opener:
    """Makes hosts and closes them."""

    def __init__(self, library: Library, backing: Backing, settings: Settings) -> None:
        self._parts = library, backing, settings

    @contextlib.asynccontextmanager
    async def host(self, **changes: float) -> AsyncIterator[ModelHost]:
        """Give a host with other settings."""
        library, backing, settings = self._parts
        host = ModelHost(library, backing, replace(settings, **changes))  # type: ignore[arg-type]
        try:
            yield host
        finally:
            await host.close()


@pytest.fixture
def opener(library: Library, backing: Backing, settings: Settings) -> Opener:
    return Opener(library, backing, settings)


def names(host: ModelHost) -> list[str]:
    return [resident.loaded.model.name for resident in host.residents()]


def is_leaving(host: ModelHost) -> bool:
    """Return whether the one model that is loaded is on its way out."""
    (resident,) = host.residents()
    return resident.expires_at is not None and resident.expires_at <= datetime.now(UTC)


def test_a_model_is_loaded_once_however_many_ask(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            leases = await asyncio.gather(*(host.lease("plain") for _ in range(5)))
            assert len({id(lease.loaded.engine) for lease in leases}) == 1
            for lease in leases:
                lease.release()
            assert names(host) == ["plain:latest"]

    asyncio.run(ask())
    assert len(script.opened) == 1
    assert script.opened[0].closed.is_set()


def test_keep_alive_of_zero_unloads_after_the_request(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            lease = await host.lease("plain", keep_alive_s=0)
            assert names(host) == ["plain:latest"]
            lease.release()
            assert names(host) == []
            assert await asyncio.to_thread(script.opened[0].closed.wait, 5)

    asyncio.run(ask())


def test_the_timer_starts_again_with_each_request(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host(keep_alive_s=0.05) as host:
            (await host.lease("plain", keep_alive_s=100)).release()
            expires_at = host.residents()[0].expires_at
            assert expires_at is not None
            lease = await host.lease("plain")
            await asyncio.to_thread(script.opened[0].closed.wait, 0.1)
            assert names(host) == ["plain:latest"]
            lease.release()
            assert await asyncio.to_thread(script.opened[0].closed.wait, 5)
            assert names(host) == []

    asyncio.run(ask())


def test_a_model_for_ever_has_no_end(opener: Opener) -> None:
    async def ask() -> None:
        async with opener.host(keep_alive_s=-1) as host:
            (await host.lease("plain")).release()
            assert host.residents()[0].expires_at is None

    asyncio.run(ask())


def test_switching_waits_for_those_who_have_the_other_model(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            first = await host.lease("plain")
            second = asyncio.create_task(host.lease("able"))
            while not is_leaving(host):  # noqa: ASYNC110 - the host has no event for that
                await asyncio.sleep(0)
            back = asyncio.create_task(host.lease("plain"))
            await asyncio.wait({second, back}, timeout=0.05)
            assert len(script.opened) == 1
            first.release()
            (await second).release()
            assert script.opened[0].closed.is_set()
            (await back).release()
            assert [engine.path.name for engine in script.opened] == ["plain", "able", "plain"]

    asyncio.run(ask())


def test_the_model_asked_for_least_recently_goes(opener: Opener) -> None:
    async def ask() -> None:
        async with opener.host(max_loaded=2) as host:
            for name in ("plain", "able", "plain", "base"):
                (await host.lease(name)).release()
            assert names(host) == ["base:latest", "plain:latest"]

    asyncio.run(ask())


def test_a_load_that_failed_is_tried_again(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            script.load_error = MemoryError("no room")
            results = await asyncio.gather(
                host.lease("plain"), host.lease("plain"), return_exceptions=True
            )
            assert [str(result) for result in results] == ["no room", "no room"]
            assert names(host) == []
            assert host.users == 0
            script.load_error = None
            (await host.lease("plain")).release()

    asyncio.run(ask())


def test_a_model_without_a_name_here_is_not_found(opener: Opener) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            with pytest.raises(ModelNotFoundError):
                await host.lease("nobody")
            assert host.users == 0

    asyncio.run(ask())


def test_no_more_may_wait_than_the_queue_has_room_for(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host(parallel=1, queue=1) as host:
            script.may_open.clear()
            waiting = [asyncio.create_task(host.lease("plain")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError) as caught:
                await host.lease("plain")
            assert caught.value.retry_after_s > 0
            script.may_open.set()
            for lease in await asyncio.gather(*waiting):
                lease.release()

    asyncio.run(ask())


def test_who_gives_up_during_a_load_leaves_nothing_behind(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            script.may_open.clear()
            waiting = asyncio.create_task(host.lease("plain"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait({waiting})
            assert host.users == 0
            script.may_open.set()
            (await host.lease("plain")).release()
            assert len(script.opened) == 1

    asyncio.run(ask())


def test_an_unloaded_model_goes_after_its_last_request(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            lease = await host.lease("plain")
            assert host.unload("plain:latest")
            assert not host.unload("plain:latest")
            assert is_leaving(host)
            assert len(host.states()) == 1
            assert not script.opened[0].closed.is_set()
            lease.release()
            assert names(host) == []
            assert await asyncio.to_thread(script.opened[0].closed.wait, 5)

    asyncio.run(ask())


def test_a_model_that_changed_is_loaded_again(
    opener: Opener, script: Script, library: Library
) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            (await host.lease("plain")).release()
            library.copy("able", "plain")
            lease = await host.lease("plain")
            assert lease.loaded.model.path.name == "able"
            lease.release()

    asyncio.run(ask())
    assert len(script.opened) == 2


def test_a_closed_host_takes_no_requests(opener: Opener, script: Script) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            await host.lease("plain")
        assert script.opened[0].closed.is_set()
        with pytest.raises(EngineClosedError):
            await host.lease("plain")

    asyncio.run(ask())


def test_who_waits_for_a_load_does_not_wait_for_it_at_the_end(
    opener: Opener, script: Script
) -> None:
    async def ask() -> None:
        async with opener.host() as host:
            script.may_open.clear()
            waiting = asyncio.create_task(host.lease("plain"))
            assert await asyncio.to_thread(script.opening.wait, 10)
            closing = asyncio.create_task(host.close())
            with pytest.raises(EngineClosedError, match="the server is ending"):
                await waiting
            assert not closing.done()
            script.may_open.set()
            await closing

    asyncio.run(ask())
    assert script.opened[0].closed.is_set()
