"""ChatTemplate: messages as the text that a model was trained to answer, by its Jinja template.

Templates come with models, so they are untrusted: they run in Jinja's sandbox, and see plain JSON.
The environment is that of Transformers, so that what is rendered is equal in every character.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sllm.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2.parser import Parser

# Other names for a message's reasoning; `reasoning_content` is the one that templates read.
_REASONING = ("reasoning_content", "thinking", "reasoning")

# What Jinja lets through when an expression makes no sense for the messages at hand.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


# Jinja would take some of these for variables of such names, and leave them empty.
_GO = re.compile(
    r"\{\{-?\s*(?:(?:else )?(?:if|range|with)\s[^}]*[.$][A-Z]|[.$][A-Z]|(?:end|else)\s*-?\}\})"
)


class ChatTemplate:
    """One template, compiled. `variables` are the names that it takes from outside."""

    def __init__(self, text: str) -> None:
        """Raise InvalidRequestError if the text is no Jinja template, but Go's for example."""
        self.text = text
        if _GO.search(text):
            raise InvalidRequestError(
                "the chat template is one of Go's, as Ollama has them: give it in Jinja, as models "
                "are published with, or leave it out"
            )
        try:
            self._compiled = _ENVIRONMENT.from_string(text)
            self.variables = frozenset(
                meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
            ).difference(_ENVIRONMENT.globals)
        except TemplateSyntaxError as error:
            raise InvalidRequestError(
                f"the chat template is not a Jinja template: line {error.lineno}: {error.message}"
            ) from error
        except (TemplateError, RecursionError) as error:
            raise InvalidRequestError(f"the chat template cannot be used: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_prompt: bool = True,
        variables: Mapping[str, Any],
    ) -> str:
        """Return the text; raise InvalidRequestError with the template's reason if it refuses."""
        try:
            return self._compiled.render(
                messages=[_with_reasoning(_plain(message)) for message in messages],
                tools=_plain(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_prompt,
                **_plain(variables),
            )
        except TemplateError as error:
            raise InvalidRequestError(f"messages: the chat template refuses: {error}") from error
        except _FAILURES as error:
            raise InvalidRequestError(
                f"messages: the chat template cannot render these: {type(error).__name__}: {error}"
            ) from error


class _Generation(Extension):
    """`{% generation %}` marks an assistant's text for training; here it is only what is in it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja wants a set.

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that takes no names of Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        given = dict(*rest, **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r} cannot be stored on a namespace")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(  # noqa: PLR0917 - as a template may call it.
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Return JSON without Jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _plain(value: Any) -> Any:
    """Return a copy of plain JSON types; a template gets at no others."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    assert isinstance(value, dict), f"messages and tools are JSON, not {type(value).__name__}"
    return {_plain(key): _plain(item) for key, item in value.items()}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    found = (message[name] for name in _REASONING if message.get(name) is not None)
    reasoning = next(found, None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


_ENVIRONMENT = _environment()
