"""How models write what is more than text: thoughts, and calls of tools; found by their template.

A call is read from its whole text. What does not read as one is text, which the caller keeps.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_XML = re.compile(r"<function=([^>\n]+)>(.*)</function>", re.DOTALL)
_XML_PARAMETER = re.compile(
    r"<parameter=([^>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|$)", re.DOTALL
)
_MISTRAL_NAMED = re.compile(r"([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?(?=\{)")
_QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')  # Not one that a backslash makes part of a string.
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, as it was written."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """What is around a model's thinking."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSyntax:
    """How calls are written: between `begin` and `end`; without an end, up to the next beginning.

    whole: a call is the whole answer, and `begin` may be missing. xml: parameters are elements
    instead of JSON; listed: calls are a list; named: a tool's name is in front of the JSON, rather
    than in it. key: what arguments are called. marks: tokens in it that a detokenizer has to show.
    read: takes what is between and the schemas of the tools' parameters, and returns None if that
    is no call.
    """

    name: str
    begin: str
    end: str
    whole: bool = False
    xml: bool = False
    listed: bool = False
    named: bool = False
    key: str = "arguments"
    marks: frozenset[str] = frozenset()
    read: Callable[[str, Mapping[str, Mapping[str, Any]]], list[Call] | None]


def find_syntax(templates: str) -> ToolSyntax:
    """Return what a model's templates show it how to write; Hermes' if they do not tell."""
    if "[TOOL_CALLS]" in templates:
        return MISTRAL_NAMED if "[ARGS]" in templates else MISTRAL
    if "<tool_call>" in templates:
        return XML if "<function=" in templates else TAGGED
    if "python_tag" in templates or '"parameters"' in templates:
        return LLAMA
    return TAGGED


def find_thought(templates: str) -> Thought:
    """Return the marks that a model's templates show."""
    return BRACKETS if BRACKETS.begin in templates else THINK


def is_whole(body: str) -> bool:
    """Return whether a mark after this much of a call is one, and not part of a text in it."""
    if body.lstrip().startswith("<function="):
        return body.rstrip().endswith("</function>")
    return len(_QUOTE.findall(body)) % 2 == 0


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return each tool's JSON schema of its parameters, by its name."""
    functions = [tool.get("function", tool) for tool in tools]
    return {function["name"]: function.get("parameters") or {} for function in functions}


def properties_of(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return each parameter's schema; an empty one for those that have none, or `true`, say."""
    given = parameters.get("properties")
    named = given.items() if isinstance(given, dict) else ()
    return {key: schema if isinstance(schema, dict) else {} for key, schema in named}


def _read_tagged(body: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[Call] | None:
    found = _XML.fullmatch(body.strip())
    if found is None:
        return _read_objects(body.strip(), schemas)
    name = found[1].strip()
    types = properties_of(schemas.get(name, {}))
    return [
        Call(
            name,
            {
                key.strip(): _read_value(text, types.get(key.strip()))
                for key, text in _XML_PARAMETER.findall(found[2])
            },
        )
    ]


def _read_value(text: str, schema: Mapping[str, Any] | None) -> Any:
    """Return a parameter as its schema wants it: a text, or what the text is as JSON."""
    text = text.removeprefix("\n").removesuffix("\n")
    kinds = (schema or {}).get("type")
    if kinds == "string" or (isinstance(kinds, list) and "string" in kinds and text != "null"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_objects(body: str, _schemas: Mapping[str, Mapping[str, Any]]) -> list[Call] | None:
    """Read one call after another, or a list of them."""
    calls: list[Call] = []
    at = 0
    while at < len(body):
        try:
            value, at = _DECODER.raw_decode(body, at)
        except (ValueError, RecursionError):
            return None
        for item in value if isinstance(value, list) else [value]:
            if (call := _read_object(item)) is None:
                return None
            calls.append(call)
        at = len(body) - len(body[at:].lstrip(" \t\r\n;,"))
    return calls or None


def _read_object(value: Any) -> Call | None:
    """Read {"name": …, "arguments": {…}}; Llama says "parameters"."""
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    value = function if isinstance(function, dict) else value
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Call(name, arguments)


def _read_mistral(body: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[Call] | None:
    named = _MISTRAL_NAMED.match(body.strip())
    if named is None:
        return _read_objects(body.strip(), schemas)
    try:
        arguments = json.loads(body.strip()[named.end() :])
    except (ValueError, RecursionError):
        return None
    return [Call(named[1], arguments)] if isinstance(arguments, dict) else None


TAGGED = ToolSyntax(name="tagged", begin="<tool_call>", end="</tool_call>", read=_read_tagged)
XML = replace(TAGGED, name="xml", xml=True)
MISTRAL = ToolSyntax(
    name="mistral",
    begin="[TOOL_CALLS]",
    end="",
    listed=True,
    marks=frozenset({"[ARGS]", "[CALL_ID]"}),
    read=_read_mistral,
)
MISTRAL_NAMED = replace(MISTRAL, name="mistral-named", listed=False, named=True)
LLAMA = ToolSyntax(
    name="llama", begin="<|python_tag|>", end="", whole=True, key="parameters", read=_read_tagged
)
THINK = Thought(begin="<think>", end="</think>")
BRACKETS = Thought(begin="[THINK]", end="[/THINK]")
