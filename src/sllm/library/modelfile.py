"""Modelfile: a model in Ollama's own text form, parsed and written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sllm.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sllm.library.model import Message, Model

_ROLES = ("system", "user", "assistant")
_QUOTES = '"""'


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("write true or false")
    return text.lower() == "true"


PARAMETERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        ("num_predict", "num_ctx", "num_keep", "top_k", "seed", "repeat_last_n", "num_gpu"), int
    ),
    **dict.fromkeys(("num_batch", "num_thread", "main_gpu", "draft_num_predict"), int),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty"), float
    ),
    "frequency_penalty": float,
    "use_mmap": _flag,
    "stop": str,
}


@dataclass(slots=True)
class Modelfile:
    """What a Modelfile says. `source` is the text after FROM: a name or a path."""

    source: str
    template: str | None = None
    system: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    license: str | None = None
    messages: list[Message] = field(default_factory=list)


def parse_modelfile(text: str) -> Modelfile:
    """Return what a Modelfile says; raise InvalidRequestError naming the line that is wrong."""
    made = Modelfile(source="")
    for number, command, value in _commands(text):
        try:
            _apply(made, command, value)
        except ValueError as error:
            raise InvalidRequestError(f"line {number} of the Modelfile: {error}") from error
    if not made.source:
        raise InvalidRequestError("the Modelfile has no FROM: name a model or a path")
    return made


def parse_parameter(name: str, text: str) -> Any:
    """Return a parameter's value from text; raise ValueError naming what it should be."""
    if name not in PARAMETERS:
        raise ValueError(f"unknown parameter {name!r} (known: {', '.join(sorted(PARAMETERS))})")
    try:
        return PARAMETERS[name](text)
    except ValueError as error:
        kind = "true or false" if name == "use_mmap" else f"a number ({error})"
        raise ValueError(f"{name} is {text!r}, expected {kind}") from error


def add_parameter(parameters: dict[str, Any], name: str, value: Any) -> None:
    """Set a parameter; `stop` may be given several times."""
    if name == "stop":
        parameters[name] = [*parameters.get(name, []), value]
    else:
        parameters[name] = value


def format_modelfile(model: Model) -> str:
    """Return a Modelfile from which `create` makes the same model again."""
    lines = ["# Modelfile by `gdsllm show`. To build on it, replace FROM with:"]
    lines += [f"# FROM {model.name}", "", f"FROM {model.path}"]
    template = model.template if model.template is not None else model.published_template
    if template is not None:
        lines.append(f"TEMPLATE {_quoted(template)}")
    if model.system is not None:
        lines.append(f"SYSTEM {_quoted(model.system)}")
    lines += [f"PARAMETER {line}" for line in format_parameters(model)]
    if model.license is not None:
        lines.append(f"LICENSE {_quoted(model.license)}")
    lines += [f"MESSAGE {role} {_quoted(text)}" for role, text in model.messages]
    return "\n".join(lines) + "\n"


def format_parameters(model: Model) -> list[str]:
    """Return the parameters, one a line, as a Modelfile has them after PARAMETER."""
    lines = []
    for name, value in model.parameters.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            text = str(one).lower() if isinstance(one, bool) else str(one)
            lines.append(f"{name} {_quoted(text) if isinstance(one, str) else text}")
    return lines


def _apply(made: Modelfile, command: str, value: str) -> None:
    match command:
        case "FROM":
            made.source = value
        case "TEMPLATE":
            made.template = value
        case "SYSTEM":
            made.system = value
        case "LICENSE":
            made.license = value if made.license is None else f"{made.license}\n{value}"
        case "PARAMETER":
            name, _, text = value.partition(" ")
            add_parameter(
                made.parameters, name.lower(), parse_parameter(name.lower(), _unquoted(text))
            )
        case "MESSAGE":
            role, _, text = value.partition(" ")
            if role not in _ROLES:
                raise ValueError(f"MESSAGE {role!r}: the role is one of {', '.join(_ROLES)}")
            made.messages.append((role, _unquoted(text)))
        case "ADAPTER":
            raise ValueError("ADAPTER is not supported: merge the adapter into the weights first")
        case _:
            raise ValueError(
                f"{command!r} is unknown (known: FROM, PARAMETER, TEMPLATE, SYSTEM, LICENSE, "
                "MESSAGE)"
            )


def _commands(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, command and value, whose quotes are gone where they span all of it."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        command, _, value = stripped.partition(" ")
        value = value.strip()
        if _opens(value):
            value = f"{value}\n" + _rest(lines, number)
        yield number, command.upper(), _unquoted(value)


def _opens(value: str) -> bool:
    """Return whether a value's last quotes are not closed on its line."""
    return value.count(_QUOTES) % 2 == 1


def _rest(lines: Iterator[tuple[int, str]], start: int) -> str:
    collected = []
    for _, line in lines:
        collected.append(line)
        if _QUOTES in line:
            return "\n".join(collected).rstrip()
    raise InvalidRequestError(f"line {start} of the Modelfile: {_QUOTES} is never closed")


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 6 and value.startswith(_QUOTES) and value.endswith(_QUOTES):
        return value[3:-3]
    if len(value) >= 2 and re.fullmatch(r'"[^"]*"', value):
        return value[1:-1]
    return value


def _quoted(text: str) -> str:
    return f"{_QUOTES}{text}{_QUOTES}" if "\n" in text or '"' in text else f'"{text}"'
