"""Service: what the routes of both APIs share, and how they get at it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation.

from sllm.core.errors import LibraryError
from sllm.gateway.asking import ask
from sllm.library.names import ModelName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sllm.gateway.asked import Asked
    from sllm.gateway.asking import Asking
    from sllm.gateway.backing import Backing
    from sllm.gateway.host import ModelHost
    from sllm.gateway.metrics import GatewayMetrics
    from sllm.gateway.settings import Settings
    from sllm.library.model import Model
    from sllm.library.models import Library
    from sllm.text.model import TextModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts of one server."""

    library: Library
    backing: Backing
    settings: Settings
    host: ModelHost
    metrics: GatewayMetrics

    async def ask(
        self, requests: Sequence[Asked], *, logprobs: int | None = None, count: int = 1
    ) -> Asking:
        """Return the answers to requests, begun; see sllm.gateway.asking.ask."""
        return await ask(
            self.host,
            requests,
            logprobs=logprobs,
            count=count,
            on_end=self.metrics.on_end,
        )

    async def find(self, name: str) -> Model:
        """Return a model of the library. Raises ModelNotFoundError."""
        return await asyncio.to_thread(self.library.get, name)

    async def unload(self, name: str) -> None:
        """Let a model go, also one that was removed since it was loaded.

        Raises ModelNotFoundError for one that is neither loaded nor here.
        """
        if not self.host.unload(str(ModelName.parse(name))):
            self.host.unload((await self.find(name)).name)

    async def text_of(self, model: Model) -> TextModel:
        """Return what a model has for text: of the loaded one, or opened for the occasion.

        Raises LibraryError if its files are gone.
        """
        for one in self.host.residents():
            if one.loaded.model == model:
                return one.loaded.text
        if model.problem is not None:
            raise LibraryError(f"{model.name}: {model.problem}")
        return await asyncio.to_thread(self.backing.open_text, model.path, model.template)


def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(_service_of)]
