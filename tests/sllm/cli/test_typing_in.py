"""A message is a line, or several between triple quotes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from sllm.cli.typing_in import make_reader, read_message

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello "], "hello"),
        (["/set system a"], "/set system a"),
        (['"""a', "b", 'c"""'], "a\nb\nc"),
        (['"""', "a", '"""'], "a"),
        (['say """x', 'y""" now'], 'say """x\ny""" now'),
        (['"""a"""'], "a"),
        (['/set system """a', 'b"""'], '/set system """a\nb"""'),
        ([""], ""),
    ],
)
def test_triple_quotes_hold_lines_together(lines: list[str], message: str) -> None:
    left = list(lines)
    assert read_message(lambda prompt: left.pop(0)) == message
    assert left == []


@pytest.mark.parametrize("writable", [True, False])
def test_what_is_typed_is_kept_where_it_can_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    writable: bool,
) -> None:
    (tmp_path / "file").touch()
    state = tmp_path / ("state" if writable else "file")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    chat: Any = SimpleNamespace(keeps_history=True)
    with (
        create_pipe_input() as typed,
        create_app_session(input=typed, output=DummyOutput()),
    ):
        read = make_reader(chat)
        typed.send_text("hello\n\x04")
        assert read() == "hello"
        assert read() is None
    history = state / "gdsllm" / "history"
    assert ("+hello" in history.read_text()) if writable else not chat.keeps_history
    assert ("cannot be written" in capsys.readouterr().err) is not writable
