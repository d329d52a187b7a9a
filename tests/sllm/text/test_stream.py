"""Tokens come out as text, up to a stop text; each is reported once, with its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sllm.core.requests import Choice
from sllm.text.model import TextModel
from sllm.text.parser import AnswerParser, ToolCall
from sllm.text.stream import Shown, TextStream, TokenReport
from tests.sllm.text.conftest import MISTRAL, SPECIAL, WEATHER, byte_level

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def model(publish: Callable[..., Path]) -> TextModel:
    return TextModel.open(
        publish(byte_level(SPECIAL, ("hello", "lo w")), chat_template__jinja=MISTRAL)
    )


def choices(model: TextModel, text: str) -> list[Choice]:
    """Return a text's tokens; each one's position is its logarithm."""
    ids = model.encode(text, special=False)
    return [Choice(id_, -float(at), ((id_, -0.5),)) for at, id_ in enumerate(ids)]


def run(stream: TextStream, tokens: list[Choice]) -> list[Shown]:
    return [*(stream.feed(choice) for choice in tokens), stream.flush()]


def test_each_token_is_reported_with_its_bytes(model: TextModel) -> None:
    stream = TextStream(model)
    smile = "😀".encode()
    pieces = run(stream, choices(model, "a😀"))
    assert [piece.text for piece in pieces] == ["a", "", "", "", "😀", ""]
    reports = [report for piece in pieces for report in piece.tokens]
    assert [report.raw for report in reports] == [b"a", *(bytes([byte]) for byte in smile)]
    assert [report.logprob for report in reports] == [0, -1, -2, -3, -4]
    first = reports[0]
    assert first == TokenReport(
        first.token, "a", b"a", 0, (TokenReport(first.token, "a", b"a", -0.5),)
    )
    assert reports[1].text == "\ufffd"


def test_nothing_is_reported_unless_asked_for(model: TextModel) -> None:
    (piece, _) = run(TextStream(model), [Choice(choices(model, "a")[0].token)])
    assert piece == Shown("a")


def test_ends_have_no_text_and_are_not_reported(model: TextModel) -> None:
    (end,) = model.ends
    assert run(TextStream(model), [Choice(end, -1.0)]) == [Shown(), Shown()]


def test_a_stop_text_and_its_tokens_are_left_out(model: TextModel) -> None:
    stream = TextStream(model, ["o w", "never"])
    pieces = run(stream, choices(model, "a hello world"))
    assert "".join(piece.text for piece in pieces) == "a hell"
    assert stream.stopped == "o w"
    reports = [report for piece in pieces for report in piece.tokens]
    assert [report.text for report in reports] == ["a", " ", "hello"]


def test_what_may_become_a_stop_text_waits_with_its_tokens(model: TextModel) -> None:
    stream = TextStream(model, ["xyz"])
    pieces = run(stream, choices(model, "axyb"))
    assert [piece.text for piece in pieces] == ["a", "", "", "xyb", ""]
    assert [len(piece.tokens) for piece in pieces] == [1, 0, 0, 3, 0]
    assert stream.stopped is None


def test_what_waits_comes_out_at_the_end(model: TextModel) -> None:
    *_, last = run(TextStream(model, ["xyz"]), choices(model, "axy"))
    assert last.text == "xy"
    assert [report.text for report in last.tokens] == ["x", "y"]


def test_marks_have_a_text_where_a_parser_needs_them(model: TextModel) -> None:
    parser = AnswerParser(model, tools=[WEATHER])
    tokens = choices(model, '<s>[TOOL_CALLS][{"name": "weather", "arguments": {}}]</s>')
    stream = TextStream(model, marks=parser.marks)
    parts = [part for piece in run(stream, tokens) for part in parser.feed(piece.text)]
    assert [*parts, *parser.flush()] == [ToolCall("call_0", "weather", {})]
    plain = "".join(piece.text for piece in run(TextStream(model), tokens))
    assert plain == '[{"name": "weather", "arguments": {}}]'


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text(st.sampled_from("helo wé😀xyz")),
    stops=st.lists(st.sampled_from(["lo", "o w", "xyz", "z", "😀x"]), max_size=3),
)
def test_text_is_what_comes_before_the_first_stop_text(
    text: str, stops: list[str], model: TextModel
) -> None:
    stream = TextStream(model, stops)
    pieces = run(stream, choices(model, text))
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(found, default=len(text))]
    assert "".join(piece.text for piece in pieces) == expected
    assert (stream.stopped is not None) == bool(found)
    raw = b"".join(report.raw for piece in pieces for report in piece.tokens)
    assert raw.startswith(expected.encode())
    if not found:
        assert raw == text.encode()
