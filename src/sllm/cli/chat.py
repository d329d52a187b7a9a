"""Chat: a conversation with a model, and what has been set for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sllm.cli.answers import write_answer
from sllm.cli.slash import run_slash
from sllm.cli.terminal import note
from sllm.core.errors import ServingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm.cli.server_client import ServerClient


class Chat:
    """A conversation. `body` is what every request carries: options, format, think."""

    def __init__(
        self,
        client: ServerClient,
        model: str,
        *,
        body: dict[str, Any],
        system: str | None = None,
        hide_thinking: bool = False,
        verbose: bool = False,
    ) -> None:
        self.client = client
        self.model = model
        self.body = body
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self._begun: list[dict[str, Any]] = []
        self.verbose = verbose
        self.keeps_history = True
        self._hide_thinking = hide_thinking

    @property
    def options(self) -> dict[str, Any]:
        """Return the sampling options, to be changed in place."""
        options: dict[str, Any] = self.body.setdefault("options", {})
        return options

    def load(self, model: str | None = None) -> None:
        """Have the server load a model, this one or another; a new conversation begins."""
        name = self.model if model is None else model
        shown = self.client.ask("POST", "/api/show", {"model": name})
        body = {
            "model": name,
            **{key: self.body[key] for key in ("keep_alive",) if key in self.body},
        }
        self.client.ask("POST", "/api/generate", {**body, "options": self.options, "stream": False})
        self.model = name
        self.messages = []
        self._begun = [
            {"role": message["role"], "content": message["content"]}
            for message in shown.get("messages") or ()
        ]

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """Return what was said, after the model's own messages, which servers put before it."""
        return [*self._begun, *self.messages]

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = []

    def ask(self, text: str) -> None:
        """Have a message answered. An answer that is interrupted stays as far as it came."""
        messages = [*self.messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {**self.body, "model": self.model, "messages": [*system, *messages]}
        answer = write_answer(
            self.client.stream("/api/chat", body),
            hide_thinking=self._hide_thinking,
            verbose=self.verbose,
        )
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]

    def converse(self, read: Callable[[], str | None]) -> None:
        """Answer messages and do commands until there are no more. An error ends one of them."""
        while (text := read()) is not None:
            if not text:
                continue
            try:
                if text.startswith("/"):
                    if not run_slash(self, text):
                        return
                else:
                    self.ask(text)
            except ServingError as error:
                note(f"error: {error}")
