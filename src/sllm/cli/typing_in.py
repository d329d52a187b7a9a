"""What a person types in a chat: a line with its history, or several between triple quotes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sllm.cli.terminal import note
from sllm.library.places import state_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from sllm.cli.chat import Chat

QUOTES = '"""'
FIRST, NEXT = ">>> ", "... "


def make_reader(chat: Chat) -> Callable[[], str | None]:
    """Return a function that reads the next message; it returns None when there are no more.

    Ctrl-C empties the line, Ctrl-D on an empty one ends.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = state_directory(os.environ) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        note(f"{path} cannot be written ({error.strerror}): what you type is not kept", dim=True)
        chat.keeps_history = False
    forgotten = PromptSession[str](history=InMemoryHistory())
    sessions = {False: forgotten, True: forgotten}
    if chat.keeps_history:
        sessions[True] = PromptSession[str](history=FileHistory(str(path)))

    def read() -> str | None:
        while True:
            try:
                return read_message(sessions[chat.keeps_history].prompt)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None

    return read


def read_message(read_line: Callable[[str], str]) -> str:
    """Return one message, which goes on over lines while its triple quotes are open."""
    line = read_line(FIRST)
    stripped = line.strip()
    if stripped.startswith("/") and QUOTES not in stripped:
        return stripped
    while line.count(QUOTES) % 2 == 1:
        line = f"{line}\n{read_line(NEXT)}"
    stripped = line.strip()
    if (
        len(stripped) >= 2 * len(QUOTES)
        and stripped.startswith(QUOTES)
        and stripped.endswith(QUOTES)
    ):
        return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return stripped
