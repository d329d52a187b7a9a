"""Whatever tokens a grammar lets through are what was asked for: walks through its masks."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from sllm.core.errors import InvalidRequestError
from sllm.text.model import TextModel
from sllm.text.parser import AnswerParser, Content, Thinking, ToolCall
from tests.sllm.text.conftest import HERMES, MISTRAL, TEMPLATES, WEATHER, byte_level

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sllm.core.requests import Constraint, Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,4}$"}},
}
TIME = {
    "type": "function",
    "function": {
        "name": "time",
        "parameters": {
            "type": "object",
            "properties": {
                "zone": {"enum": ["utc", "local"], "type": "string"},
                "at": {"$ref": "#/$defs/at"},
            },
            "required": ["zone"],
            "additionalProperties": False,
            "$defs": {"at": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
        },
    },
}


def is_person(value: Any) -> bool:
    """Say what the schema says."""
    return (
        set(value) <= {"name", "age", "kind", "tags", "more"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and value["kind"] in {"cat", "dog"}
        and all(tag.islower() and 1 <= len(tag) <= 4 for tag in value.get("tags", []))
        and len(value.get("tags", [])) <= 3
        and value.get("more") in {None, True, False}
    )


def tokens_of(mask: bytes) -> list[int]:
    """Return the tokens of a mask."""
    return [
        at * 8 + bit for at, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1
    ]


def walk(model: TextModel, grammar: Grammar, seed: int, *, wander: int = 30) -> str:
    """Return a random text of a grammar; after a while, the shortest way out is taken."""
    draw = random.Random(seed)
    state: Constraint = grammar.begin()
    raw = b""
    for step in range(4000):
        if state.finished:
            break
        if step > wander and step % 8 == 0:
            raw += _close(model, state)
            continue
        tokens = tokens_of(state.allowed())
        assert tokens, "there is always a way on"
        if step > wander:
            tokens = sorted(tokens, key=lambda token: _length(model, token))[:4]
        ends = model.ends.intersection(tokens)
        token = min(ends) if ends and draw.random() < 0.7 else draw.choice(tokens)
        state.advance(token)
        raw += b"" if token in model.ends else model.token_bytes.table[token]
    assert state.finished
    assert set(tokens_of(state.allowed())) == model.ends
    return raw.decode()


def _close(model: TextModel, state: Constraint) -> bytes:
    """End a text in XML, if that is where the answer is."""
    said = b""
    for token in model.encode("\n</parameter>\n", special=False):
        if state.finished or token not in tokens_of(state.allowed()):
            break
        state.advance(token)
        said += model.token_bytes.table[token]
    return said


def _length(model: TextModel, token: int) -> tuple[int, int]:
    raw = model.token_bytes.table.get(token, b"")
    return (0 if raw[:1] in b'"}]<\n' else 1), len(raw)


@pytest.fixture
def small(publish: Callable[..., Path]) -> TextModel:
    return TextModel.open(publish(chat_template__jinja=HERMES))


@pytest.fixture(scope="module")
def real(smollm2: Path) -> TextModel:
    return TextModel.open(smollm2)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_real_vocabulary_may_say_is_what_the_schema_describes(
    seed: int, real: TextModel
) -> None:
    assert is_person(json.loads(walk(real, real.grammar(PERSON), seed)))


@pytest.mark.parametrize("seed", range(8))
def test_json_mode_gives_objects(seed: int, real: TextModel) -> None:
    assert isinstance(json.loads(walk(real, real.grammar("json"), seed), strict=True), dict)


def test_a_text_that_fits_is_let_through(real: TextModel) -> None:
    person = {"name": "Zoë 😀", "age": 7, "kind": "cat", "more": None}
    text = json.dumps(person, indent=2, ensure_ascii=False)
    state = real.grammar(PERSON).begin()
    for token in real.encode(text, special=False):
        assert token in tokens_of(state.allowed())
        assert not state.finished
        state.advance(token)
    assert state.finished


def test_answers_do_not_share_their_state(small: TextModel) -> None:
    grammar = small.grammar("json")
    first, second = grammar.begin(), grammar.begin()
    before = second.allowed()
    first.advance(small.encode("{", special=False)[0])
    assert second.allowed() == before
    assert first.allowed() != before


def test_an_answer_may_end_only_where_it_is_whole(small: TextModel) -> None:
    state = small.grammar({"type": "integer"}).begin()
    assert not small.ends & set(tokens_of(state.allowed()))
    state.advance(small.encode("7", special=False)[0])
    assert small.ends <= set(tokens_of(state.allowed()))
    assert not state.finished
    state.advance(min(small.ends))
    assert state.finished


def test_a_schema_is_compiled_once(small: TextModel) -> None:
    assert small.grammar(PERSON) is small.grammar(dict(PERSON))


def test_masks_take_little_time(real: TextModel) -> None:
    state = real.grammar(PERSON).begin()
    state.allowed()
    text = '{"name": "Ann", "age": 7, "kind": "dog"}'
    times_s = []
    for token in real.encode(text, special=False):
        start_s = time.perf_counter()
        state.allowed()
        times_s.append(time.perf_counter() - start_s)
        state.advance(token)
    assert sorted(times_s)[len(times_s) // 2] < 0.01


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "wrong"}, "Invalid type: wrong"),
        ({"$ref": "#/x"}, "Pointer '/x' does not exist"),
        ({"type": "string", "pattern": "(?=x)"}, "regex parse error"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"x": object()}, "not a JSON schema"),
    ],
    ids=["not", "type", "reference", "pattern", "nothing", "no JSON"],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(
    schema: dict[str, Any], reason: str, small: TextModel
) -> None:
    with pytest.raises(InvalidRequestError, match=r"^format: ") as refused:
        small.grammar(schema)
    assert reason in str(refused.value)


def test_a_schema_too_deep_is_refused(small: TextModel) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequestError, match="format: "):
        small.grammar(schema)


def test_what_is_no_format_is_refused(small: TextModel) -> None:
    form: Any = "xml"
    with pytest.raises(InvalidRequestError, match=r"format: 'xml' is neither"):
        small.grammar(form)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("template", [*TEMPLATES, "mistral-named"])
def test_a_required_call_is_always_one(
    template: str, seed: int, publish: Callable[..., Path]
) -> None:
    text = TEMPLATES.get(template) or MISTRAL.replace("[TOOLS]", "[TOOLS][ARGS]")
    model = TextModel.open(publish(chat_template__jinja=text))
    tools = [WEATHER, TIME]
    answer = walk(model, model.tool_grammar(tools), seed)
    parser = AnswerParser(model, tools=tools)
    parts = [*parser.feed(answer), *parser.flush()]
    assert parts
    for part in parts:
        assert isinstance(part, ToolCall), answer
        if part.name == "weather":
            assert {"city", "days"} <= set(part.arguments) <= {"city", "days", "note"}
            assert type(part.arguments["days"]) is int
        else:
            assert part.name == "time"
            assert part.arguments["zone"] in {"utc", "local"}
            assert len(part.arguments.get("at", [])) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_named_tool_is_the_one_that_is_called(seed: int, small: TextModel) -> None:
    answer = walk(small, small.tool_grammar([WEATHER, TIME], name="time"), seed)
    parts = AnswerParser(small, tools=[WEATHER, TIME]).feed(answer)
    assert {part.name for part in parts if isinstance(part, ToolCall)} == {"time"}


def test_a_choice_among_no_tools_is_refused(small: TextModel) -> None:
    with pytest.raises(InvalidRequestError, match="tool_choice: gone is not among the tools"):
        small.tool_grammar([WEATHER], name="gone")
    with pytest.raises(InvalidRequestError, match="tool_choice: no tools"):
        small.tool_grammar([])
    bad = {"function": {"name": "f", "parameters": {"type": "wrong"}}}
    with pytest.raises(InvalidRequestError, match=r"tools: f: .*Invalid type: wrong"):
        small.tool_grammar([bad])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prompt", ["", "<think>\n"])
def test_a_thought_may_come_before_what_is_constrained(
    seed: int, prompt: str, small: TextModel
) -> None:
    grammar = small.grammar({"type": "integer"}, think=True, prompt=prompt)
    answer = walk(small, grammar, seed) if not prompt else "hm</think>\n-5"
    state = grammar.begin()
    for token in small.encode(answer, special=False):
        assert token in tokens_of(state.allowed())
        state.advance(token)
    parser = AnswerParser(small, think=True, prompt=prompt)
    *thoughts, content = [*parser.feed(answer), *parser.flush()]
    assert isinstance(content, Content)
    assert isinstance(json.loads(content.text), int)
    assert all(isinstance(thought, Thinking) for thought in thoughts)


def test_a_vocabulary_without_an_end_can_be_constrained(publish: Callable[..., Path]) -> None:
    path = publish(byte_level(("<|im_start|>",)), tokenizer_config__json={})
    model = TextModel.open(path)
    assert not model.ends
    state = model.grammar({"const": 5}).begin()
    (token,) = model.encode("5", special=False)
    assert tokens_of(state.allowed()) == [token]
    state.advance(token)
    assert state.finished


@pytest.mark.parametrize("properties", [{"zone": True}, ["zone"]])
def test_a_parameter_without_a_schema_of_its_own_takes_anything(
    publish: Callable[..., Path], properties: Any
) -> None:
    model = TextModel.open(publish(byte_level(), chat_template__jinja=TEMPLATES["coder"]))
    tool = {"function": {"name": "time", "parameters": {"properties": properties, "required": 5}}}
    assert model.tool_grammar([tool]).begin().allowed()
