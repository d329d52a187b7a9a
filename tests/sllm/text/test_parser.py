"""Answers become content, thoughts and calls, however their text is cut, and nothing is lost."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sllm.text.parser import AnswerParser, Content, Part, Thinking, ToolCall
from sllm.text.syntax import BRACKETS, LLAMA, MISTRAL, TAGGED, THINK, XML
from tests.sllm.text.conftest import TEMPLATES, WEATHER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sllm.text.model import TextModel
    from sllm.text.syntax import Thought, ToolSyntax


class Model:
    """What a parser asks of a model."""

    def __init__(self, syntax: ToolSyntax, thought: Thought = THINK) -> None:
        self.syntax = syntax
        self.thought = thought


def parse(
    model: Any,
    pieces: Sequence[str],
    *,
    think: bool = True,
    tools: Any = (WEATHER,),
    **options: Any,
) -> list[Part]:
    """Return the parts of a text that comes in pieces; texts that meet are one."""
    parser = AnswerParser(model, tools=tools, think=think, **options)
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.flush()
    assert parser.flush() == []
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Content) and isinstance(last, Content):
            merged[-1] = Content(last.text + part.text)
        elif isinstance(part, Thinking) and isinstance(last, Thinking):
            merged[-1] = Thinking(last.text + part.text)
        else:
            assert isinstance(part, ToolCall) or part.text
            merged.append(part)
    return merged


def call(number: int = 0, **arguments: Any) -> ToolCall:
    return ToolCall(f"call_{number}", "weather", arguments)


XML_CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n<parameter=note>\n5 </tool_call>\n6\n</parameter>\n"
    "</function>\n</tool_call>"
)
# The parts of an answer; None for one that is content in whole.
CASES: list[tuple[ToolSyntax, str, list[Part] | None]] = [
    (TAGGED, "", []),
    (TAGGED, " Hello \n", [Content(" Hello \n")]),
    (TAGGED, "<think>\nhm\n\n</think>\n\nSo.", [Thinking("hm"), Content("So.")]),
    (TAGGED, " \n<think></think>\n", []),
    (TAGGED, "<think>hm ", [Thinking("hm ")]),
    (TAGGED, "say <think> as text", [Content("say <think> as text")]),
    (TAGGED, "<think>a</think><think>b", [Thinking("a"), Content("<think>b")]),
    (
        TAGGED,
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "B"}}\n</tool_call>\n'
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>\n',
        [Content("Let me see."), call(city="B"), call(1)],
    ),
    (
        TAGGED,
        '<tool_call>{"name": "weather", "arguments": {"city": "\\"</tool_call>\\\\"}}</tool_call>',
        [call(city='"</tool_call>\\')],
    ),
    (TAGGED, 'a <tool_call>{"name": 1}</tool_call> b', None),
    (TAGGED, 'a <tool_call>{"name": "weather", "arguments": {', None),
    (TAGGED, "a <tool_call", None),
    (TAGGED, "<tool_call>{}</tool_call>", None),
    (TAGGED, "<tool_call></tool_call>", None),
    (
        TAGGED,
        '<tool_call>oh <tool_call>{"name": "weather", "arguments": "{}"}</tool_call>',
        [Content("<tool_call>oh"), call()],
    ),
    (
        XML,
        f"Yes\n{XML_CALL}",
        [Content("Yes"), call(city="Bern", days=3, note="5 </tool_call>\n6")],
    ),
    (XML, "<tool_call><function=weather></function></tool_call>", [call()]),
    (XML, XML_CALL.replace("</function>", ""), None),
    (LLAMA, '{"name": "weather", "parameters": {"days": 1}}', [call(days=1)]),
    (LLAMA, '<|python_tag|>{"name": "weather", "parameters": {}}\n', [call()]),
    (
        LLAMA,
        '\n{"name": "weather", "parameters": {}}; {"type": "function", "function": '
        '{"name": "weather", "parameters": {"days": 2}}}',
        [call(), call(1, days=2)],
    ),
    (LLAMA, ' {"name": "weather"', None),
    (LLAMA, '{"temperature": 5}', None),
    (LLAMA, "<|python_tag|>print(1)", None),
    (LLAMA, 'It is {"name": "weather"}', None),
    (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {"days": 1}}]', [call(days=1)]),
    (
        MISTRAL,
        'Ok [TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS]"}',
        [
            Content("Ok"),
            call(city="[TOOL_CALLS]"),
        ],
    ),
    (
        MISTRAL,
        '[TOOL_CALLS]weather[CALL_ID]a1b2[ARGS]{"days": 1}[TOOL_CALLS]weather{"days": 2}',
        [call(days=1), call(1, days=2)],
    ),
    (MISTRAL, "[TOOL_CALLS] none", None),
]


@pytest.mark.parametrize(("syntax", "text", "parts"), CASES)
def test_an_answer_is_understood_however_it_is_cut(
    syntax: ToolSyntax, text: str, parts: list[Part] | None
) -> None:
    model = Model(syntax)
    parts = [Content(text)] if parts is None else parts
    assert parse(model, [text]) == parts
    assert parse(model, list(text)) == parts
    for cut in range(len(text)):
        assert parse(model, [text[:cut], text[cut:]]) == parts


FRAGMENTS = st.sampled_from(
    (
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", " "),
        *('{"name": "weather", "arguments": {}}', "<function=f>", "</function>", '"', "\\", "{"),
        *("\n", "a", "<"),
    )
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    syntax=st.sampled_from([TAGGED, XML, LLAMA, MISTRAL]),
    fragments=st.lists(FRAGMENTS, max_size=12),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    prompt=st.sampled_from(["", "<think>\n"]),
)
def test_any_text_gives_the_same_parts_however_it_is_cut(
    syntax: ToolSyntax, fragments: list[str], cuts: list[int], prompt: str
) -> None:
    text = "".join(fragments)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    whole = parse(Model(syntax), [text], prompt=prompt)
    assert parse(Model(syntax), pieces, prompt=prompt) == whole
    assert parse(Model(syntax), list(text), prompt=prompt) == whole
    if not any(isinstance(part, ToolCall) for part in whole):
        shown = "".join(part.text for part in whole if not isinstance(part, ToolCall))
        if any(isinstance(part, Thinking) for part in whole) or prompt or "<think>" in text:
            text = text.replace("<think>", "").replace("</think>", "")
            shown = shown.replace("<think>", "").replace("</think>", "")
        assert "".join(shown.split()) == "".join(text.split())


@given(text=st.text(st.sampled_from("<think>/ \n{}tol_ca[")), cut=st.integers(0, 40))
def test_without_tools_and_thoughts_a_text_passes_at_once(text: str, cut: int) -> None:
    parser = AnswerParser(Model(TAGGED), tools=(), think=False)  # type: ignore[arg-type]
    pieces = [piece for piece in (text[:cut], text[cut:]) if piece]
    assert [parser.feed(piece) for piece in pieces] == [[Content(piece)] for piece in pieces]
    assert parser.flush() == []
    assert not parser.marks


def test_a_thought_that_the_prompt_began_goes_on() -> None:
    parts = parse(
        Model(TAGGED), ["hm\n</thi", "nk>\nSo."], prompt="<|im_start|>assistant\n<think>\n"
    )
    assert parts == [Thinking("hm"), Content("So.")]


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"city": True}},
        {"properties": {"city": False}},
        {"properties": ["city"]},
        {"properties": {"city": {}}},
    ],
)
def test_parameters_without_a_schema_take_anything(parameters: dict[str, Any]) -> None:
    tool = {"function": {"name": "weather", "parameters": parameters}}
    text = "<tool_call><function=weather><parameter=city>Bern</parameter></function></tool_call>"
    assert parse(Model(XML), [text], tools=[tool]) == [call(city="Bern")]


def test_a_call_may_follow_a_thought() -> None:
    text = '<think>x</think>\n{"name": "weather", "parameters": {}}'
    assert parse(Model(LLAMA), [text]) == [Thinking("x"), call()]


def test_thoughts_are_told_apart_only_if_that_is_wanted() -> None:
    text = "<think>x</think>y"
    assert parse(Model(TAGGED), [text], think=False) == [Content(text)]
    assert parse(Model(TAGGED, BRACKETS), ["[THINK]x[/THINK]y"]) == [Thinking("x"), Content("y")]


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(Model(TAGGED), tools=[WEATHER], think=True)  # type: ignore[arg-type]
    assert parser.feed("a") == [Content("a")]
    assert parser.feed(" ") == []
    assert parser.feed("b <") == [Content(" b")]
    assert parser.feed("c") == [Content(" <c")]


def test_calls_are_named_by_the_caller() -> None:
    names = iter(["x", "y"])
    text = '<tool_call>{"name": "weather"}</tool_call>' * 2
    parts = parse(Model(TAGGED), [text], new_id=lambda: next(names))
    assert [part.id for part in parts if isinstance(part, ToolCall)] == ["x", "y"]


@pytest.mark.parametrize(
    ("template", "syntax"),
    [("hermes", "tagged"), ("coder", "xml"), ("llama", "llama"), ("mistral", "mistral")],
)
def test_templates_tell_how_calls_are_written(
    template: str, syntax: str, model: Callable[[str], TextModel]
) -> None:
    opened = model(template)
    assert opened.syntax.name == syntax
    marks = AnswerParser(opened, tools=[WEATHER], think=True).marks
    assert {opened.syntax.begin, "<think>", "</think>"} <= marks
    assert template in TEMPLATES


def test_a_long_malformed_call_takes_no_quadratic_time() -> None:
    text = "<tool_call>" + '{"name": "</tool_call>' + "x" * 200_000
    assert parse(Model(TAGGED), [text[at : at + 50] for at in range(0, len(text), 50)]) == [
        Content(text)
    ]
