"""A chat remembers what was said and set, and survives errors and Ctrl-C."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from sllm.cli.chat import Chat
from sllm.cli.server_client import ServerClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sllm.cli.fake_ollama import FakeOllama

TIMEOUT_S = 40.0


@pytest.fixture
def chat(ollama: FakeOllama) -> Iterator[Chat]:
    """A chat with `tiny`."""
    with ServerClient(ollama.url) as client:
        yield Chat(client, "tiny", body={"options": {"seed": 1}})


def converse(chat: Chat, *lines: str) -> None:
    left = list(lines)
    chat.converse(lambda: left.pop(0) if left else None)


def contents(body: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_what_was_said_is_remembered_until_it_is_cleared(
    chat: Chat, ollama: FakeOllama, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(chat, "one", "", "two", "/clear", "three", "/bye", "never")
    first, second, third = map(contents, ollama.bodies("/api/chat"))
    assert first == [("user", "one")]
    assert second == [("user", "one"), ("assistant", "one "), ("user", "two")]
    assert third == [("user", "three")]
    assert capsys.readouterr().out == "one \ntwo \nthree \n"


def test_what_is_set_reaches_the_server(chat: Chat, ollama: FakeOllama) -> None:
    converse(
        chat,
        "/set system be kind",
        "/set parameter temperature 0.5",
        "/set parameter stop a",
        "/set parameter stop b c",
        "/set format json",
        "/set think",
        "hi",
        "/set system",
        "/set parameter stop",
        "/set noformat",
        "/set nothink",
        "ho",
    )
    first, second = ollama.bodies("/api/chat")
    assert contents(first)[0] == ("system", "be kind")
    assert first["options"] == {"seed": 1, "temperature": 0.5, "stop": ["a", "b c"]}
    assert (first["format"], first["think"]) == ("json", True)
    assert contents(second)[0] == ("user", "hi")
    assert second["options"] == {"seed": 1, "temperature": 0.5}
    assert ("format" in second, second["think"]) == (False, False)


def test_mistakes_are_told_and_the_chat_goes_on(
    chat: Chat, ollama: FakeOllama, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(
        *(chat, "/nonsense", "/set", "/set nothing", "/set parameter heat 1", "/load", "/save"),
        *("/set parameter top_k x", "/set format xml", "/load missing", "fail", "hi"),
    )
    said = capsys.readouterr()
    for part in (
        "unknown command /nonsense",
        "what to set?",
        "unknown parameter 'heat'",
        "top_k is 'x'",
        "load what?",
        "save as what?",
        "the format is json",
        "error: model 'missing' not found",
        "error: the model broke",
    ):
        assert part in said.err
    assert chat.model == "tiny"
    assert contents(ollama.bodies("/api/chat")[-1]) == [("user", "hi")]


def test_another_model_begins_anew_and_its_own_messages_are_kept_with_it(
    chat: Chat, ollama: FakeOllama
) -> None:
    ollama.models.add("primed")
    converse(chat, "hi", "/load primed", "ho", "/save mine")
    # The server has the model's own messages, and puts them before these.
    assert contents(ollama.bodies("/api/chat")[-1]) == [("user", "ho")]
    assert contents(ollama.bodies("/api/create")[-1]) == [
        ("user", "from the Modelfile"),
        ("user", "ho"),
        ("assistant", "ho "),
    ]


def test_what_there_is_is_shown(
    chat: Chat, ollama: FakeOllama, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(chat, "/show info", "/show system", "/show template", "/list", "/?", "/set verbose")
    said = capsys.readouterr().out
    for part in ("llama", "its own", "no template", "tiny", "/set parameter"):
        assert part in said
    converse(chat, "/set system mine", "/show system", "/show parameters", "hi")
    after = capsys.readouterr()
    assert "mine" in after.out
    assert "seed" in after.out
    assert "eval rate" in after.err
    converse(chat, "/show modelfiles")
    mistaken = capsys.readouterr()
    assert "what to show? one of info, license, modelfile" in mistaken.err
    assert "llama" not in mistaken.out


def test_a_chat_is_saved_as_a_model(chat: Chat, ollama: FakeOllama) -> None:
    converse(chat, "/set system be kind", "hi", "/save mine")
    saved = ollama.bodies("/api/create")[-1]
    assert (saved["model"], saved["from"], saved["system"]) == ("mine", "tiny", "be kind")
    assert saved["parameters"] == {"seed": 1}
    assert len(saved["messages"]) == 2


class Terminal:
    """A `gdsllm run` that believes a person is there."""

    def __init__(self, model: str, url: str) -> None:
        self.mine, theirs = pty.openpty()
        command = [sys.executable, "-m", "sllm.cli", "run", model, "--host", url]
        environment = {**os.environ, "TERM": "dumb", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self.said = ""

    def wait_for(self, text: str) -> None:
        """Read until a text has come."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while text not in self.said:
            ready, _, _ = select.select([self.mine], [], [], deadline_s - time.monotonic())
            assert ready, self.said
            self.said += os.read(self.mine, 4096).decode()
        self.said = self.said.partition(text)[2]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.mine, text.encode())


def test_a_person_chats_in_a_terminal(ollama: FakeOllama, home: Path) -> None:
    ollama.models.add("slow")
    terminal = Terminal("slow", ollama.url)
    try:
        terminal.wait_for(">>> ")
        terminal.type("/set quiet\r")
        terminal.wait_for("no figures")
        terminal.wait_for(">>> ")
        terminal.type("hello\r")
        terminal.wait_for("and so on and so on")
        terminal.process.send_signal(signal.SIGINT)
        assert ollama.left.wait(TIMEOUT_S)
        terminal.wait_for(">>> ")
        terminal.type("/load tiny\r")
        terminal.wait_for("loading tiny")
        terminal.wait_for(">>> ")
        terminal.type('"""first\r')
        terminal.wait_for("... ")
        terminal.type('second"""\r')
        terminal.wait_for("second \r\n")
        terminal.wait_for(">>> ")
        terminal.type("/bye\r")
        assert terminal.process.wait(TIMEOUT_S) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.mine)
    assert contents(ollama.bodies("/api/chat")[-1]) == [("user", "first\nsecond")]
    kept = (home / ".state" / "gdsllm" / "history").read_text()
    assert "+hello" in kept
