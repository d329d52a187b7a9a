"""Output on terminals and into pipes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sllm_store.cli.terminal import note, progress, say, say_json, say_table

if TYPE_CHECKING:
    import pytest


def test_a_pipe_gets_whole_lines_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    say("x" * 500)
    note("y" * 500)
    say_table(("name", ">size"), [("z" * 300, 1)])
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "x" * 500
    assert err == "y" * 500 + "\n"
    assert "z" * 300 in out
    assert "\x1b" not in out + err


def test_text_that_looks_like_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    say("[red]m[/red]")
    say_table(("name",), [("[bold]n",)])
    out, _ = capsys.readouterr()
    assert "[red]m[/red]" in out
    assert "[bold]n" in out


def test_json_keeps_letters_and_writes_paths(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"name": "größe"})
    out, _ = capsys.readouterr()
    assert "größe" in out
    assert json.loads(out) == {"name": "größe"}


def test_a_pipe_gets_no_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working") as on_progress:
        on_progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_progress_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("working") as on_progress:
        on_progress(1, 2)
    assert "working" in capsys.readouterr().err
