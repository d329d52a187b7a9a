"""Grammars: what an answer has to look like, as masks over the vocabulary, by llguidance.

A schema is compiled once and kept; each answer starts from a copy. Masks are computed without the
interpreter's lock.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLTokenizer

from sllm.core.errors import InvalidRequestError, UnsupportedModelError
from sllm.text.syntax import parameters_of, properties_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sllm.text.syntax import Thought, ToolSyntax

KEPT = 64
# A line's end and its indentation: a model that has nothing to say must not do so forever.
_SPACE = r"\n?[ \t]{0,24}"
_OBJECT = {"type": "object"}
_TEXT = r"/(.|\n)*/"
_GAP = r"/\s{0,2}/"


class CompiledGrammar:
    """A grammar that answers start from."""

    def __init__(self, matcher: LLMatcher, ends: Collection[int]) -> None:
        self._matcher = matcher
        self._ends = frozenset(ends)

    def begin(self) -> GrammarState:
        """Return the constraint of an answer without any token."""
        return GrammarState(self._matcher.deep_copy(), self._ends)


class GrammarState:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ended = False

    def allowed(self) -> bytes:
        """Return the tokens that may come next, a bit each; the ends among them where it may end.

        Raises InvalidRequestError if the grammar turns out to be too much to compute.
        """
        if self.finished:
            return _bits(self._ends)
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise InvalidRequestError(
                f"format: cannot be followed any further: {_first_line(self._matcher.get_error())}"
            )
        return mask

    def advance(self, token: int) -> None:
        """Take note of the token that came; it was allowed."""
        if self.finished or token in self._ends:
            assert token in self._ends, f"the token {token} after the end of the grammar"
            self._ended = True
            return
        taken = self._matcher.consume_token(token)
        assert taken, f"the token {token} is not in the grammar: {self._matcher.get_error()}"

    @property
    def finished(self) -> bool:
        """Return whether nothing may follow."""
        return self._ended or self._matcher.is_stopped()


class Grammars:
    """Compiles grammars for one vocabulary. Any thread may use it."""

    def __init__(self, tokenizer: str, ends: Collection[int]) -> None:
        """Take a tokenizer.json; raise UnsupportedModelError if masks cannot be made for it."""
        self._ends = sorted(ends)
        try:
            self._tokenizer = LLTokenizer(tokenizer, eos_token=self._ends or None)
        except (ValueError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"format: answers of this model cannot be constrained: {error}"
            ) from error
        self._ids = {
            token["content"]: token["id"] for token in json.loads(tokenizer)["added_tokens"]
        }
        self._compile = lru_cache(maxsize=KEPT)(self._compile_lark)

    def json(
        self, schema: Mapping[str, Any], *, thought: Thought | None, opened: bool
    ) -> CompiledGrammar:
        """Return the grammar of the JSON that a schema describes.

        thought: marks of thinking that may come first, if any; opened: whether it has begun.
        Raises InvalidRequestError naming what in the schema cannot be followed.
        """
        rules = [f"body: {self._value(schema, where='format')}"]
        return self._begin(rules, "body", thought=thought, opened=opened)

    def calls(
        self,
        syntax: ToolSyntax,
        tools: Sequence[Mapping[str, Any]],
        *,
        thought: Thought | None,
        opened: bool,
    ) -> CompiledGrammar:
        """Return the grammar of an answer that calls one of the tools, or several.

        Raises InvalidRequestError naming the tool whose parameters cannot be followed.
        """
        rules = []
        names = []
        for index, (name, parameters) in enumerate(parameters_of(tools).items()):
            names.append(f"call_{index}")
            write = self._xml if syntax.xml else self._json_call
            rules += write(names[-1], name, parameters, syntax)
        call = f"({' | '.join(names)})"
        begin, end = self._mark(syntax.begin), self._mark(syntax.end)
        if syntax.whole:
            body = call
        elif syntax.listed:
            body = f'{begin} "[" {call} (", " {call})* "]"'
        elif not syntax.end:
            body = f"({begin} {call})+"
        else:
            one = f'{begin} "\\n" {call} "\\n" {end}'
            body = f'{one} ("\\n" {one})*'
        return self._begin([*rules, f"body: {body}"], "body", thought=thought, opened=opened)

    def _begin(
        self, rules: list[str], body: str, *, thought: Thought | None, opened: bool
    ) -> CompiledGrammar:
        start = body
        if thought is not None:
            rest = f"thinking {self._mark(thought.end)} gap"
            start = f"({self._mark(thought.begin)} {rest})? {body}"
            start = f"{rest} {body}" if opened else start
            rules = [*rules, f"thinking: {_TEXT}", f"gap: {_GAP}"]
        return self._compile("\n".join([f"start: {start}", *rules]))

    def _json_call(
        self, rule: str, name: str, parameters: Mapping[str, Any], syntax: ToolSyntax
    ) -> list[str]:
        arguments = self._value(parameters or _OBJECT, where=f"tools: {name}")
        if syntax.named:
            head = f"{_quote(name)} {self._mark('[ARGS]')}"
            return [f"{rule}: {head} {rule}_value", f"{rule}_value: {arguments}"]
        head = _quote(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{syntax.key}": ')
        return [f'{rule}: {head} {rule}_value "}}"', f"{rule}_value: {arguments}"]

    def _xml(
        self, rule: str, name: str, parameters: Mapping[str, Any], _syntax: ToolSyntax
    ) -> list[str]:
        needed = parameters.get("required")
        needed = needed if isinstance(needed, list) else ()
        rules = []
        parts = [_quote(f"<function={name}>\n")]
        for index, (key, schema) in enumerate(properties_of(parameters).items()):
            part = f"{rule}_{index}"
            parts.append(part if key in needed else f"{part}?")
            head = _quote(f"<parameter={key}>\n")
            tail = _quote("\n</parameter>\n")
            if schema.get("type") == "string" and "enum" not in schema:
                rules += [f"{part}: {head} {part}_value", f"{part}_value[suffix={tail}]: {_TEXT}"]
                continue
            shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
            value = self._plain(schema, shared, where=f"tools: {name}: {key}")
            rules += [f"{part}: {head} {part}_value {tail}", f"{part}_value: {value}"]
        return [f"{rule}: {' '.join([*parts, _quote('</function>')])}", *rules]

    def _plain(self, schema: Mapping[str, Any], shared: Mapping[str, Any], *, where: str) -> str:
        """Return a rule for a value in XML: texts are not in quotes there."""
        choices = schema.get("enum")
        if choices and all(isinstance(choice, str) for choice in choices):
            return " | ".join(_quote(choice) for choice in choices)
        return self._value({**shared, **schema}, where=where)

    def _value(self, schema: Mapping[str, Any], *, where: str) -> str:
        """Return a rule for JSON; raise InvalidRequestError if the schema cannot be followed."""
        options = {"whitespace_pattern": _SPACE}
        try:
            text = json.dumps({**schema, "x-guidance": options})
            grammar = LLMatcher.grammar_from_json_schema(text)
        except (RecursionError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"{where}: not a JSON schema: {error}") from error
        if reason := LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise InvalidRequestError(
                f"{where}: the schema cannot be followed: {_first_line(reason)}"
            )
        return f"%json {text}"

    def _mark(self, token: str) -> str:
        """Return a rule for a mark: the vocabulary's token, or its text."""
        id_ = self._ids.get(token)
        return _quote(token) if id_ is None else f"<[{id_}]>"

    def _compile_lark(self, lark: str) -> CompiledGrammar:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            reason = _first_line(matcher.get_error())
            raise InvalidRequestError(f"format: cannot be followed: {reason}")
        return CompiledGrammar(matcher, self._ends)


def _bits(tokens: Collection[int]) -> bytes:
    """Return a mask of these tokens alone."""
    mask = bytearray(max(tokens, default=0) // 8 + 1)
    for token in tokens:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
