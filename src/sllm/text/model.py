"""TextModel: one model's text side: requests into token ids, and what its answers may hold."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from sllm.core.errors import InvalidRequestError, UnsupportedModelError
from sllm.core.token_bytes import TokenBytes
from sllm.text.files import DEFAULT_TEMPLATE, ModelFiles
from sllm.text.syntax import find_syntax, find_thought
from sllm.text.template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sllm.core.requests import Grammar
    from sllm.text.grammar import Grammars
    from sllm.text.syntax import Thought, ToolSyntax

TOOL_TEMPLATE = "tool_use"
# For models without a template whose vocabulary has its two marks: they were trained on it.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ANY_OBJECT = {"type": "object"}
_CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
# What is put before the first text, before the second and after it, as the families spell it.
_FILLS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
)


class TextModel:
    """A tokenizer, chat templates and the ends of one model. Any thread may use it.

    ends: ids that end an answer. begin: the id that is put before a text, or None. capabilities:
    of 'completion', 'tools', 'thinking' and 'insert', as Ollama names them.
    """

    def __init__(self, vocabulary: _Vocabulary, templates: Mapping[str, str]) -> None:
        self._vocabulary = vocabulary
        self._files = vocabulary.files
        self._tokenizer = vocabulary.tokenizer
        self.token_bytes = vocabulary.token_bytes
        self.ends = vocabulary.files.ends
        bos = self._files.roles.get("bos_token")
        first = self.encode("", special=True)[:1]
        self.begin = first[0] if first and first[0] == self._id(bos) else None
        self._templates = {name: _compile(self._files, text) for name, text in templates.items()}
        if not self._templates and all(self._id(mark) is not None for mark in _CHATML_MARKS):
            self._templates = {DEFAULT_TEMPLATE: ChatTemplate(CHATML)}

    @classmethod
    def open(cls, path: Path, *, template: str | None = None) -> TextModel:
        """Open what a checkpoint of any format has for text.

        template: a Jinja chat template instead of the model's own. Raises InvalidRequestError if a
        template is none, UnsupportedModelError or InvalidCheckpointError for a tokenizer that
        cannot be used.
        """
        files = ModelFiles.read(path)
        templates = files.templates if template is None else {DEFAULT_TEMPLATE: template}
        return cls(_Vocabulary(files), templates)

    def with_template(self, template: str) -> TextModel:
        """Return the model with another chat template; its tokenizer and grammars are shared.

        Raises InvalidRequestError if it is none.
        """
        try:
            ChatTemplate(template)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"template: {error}") from error
        return TextModel(self._vocabulary, {DEFAULT_TEMPLATE: template})

    @property
    def has_template(self) -> bool:
        """Return whether it can be given messages."""
        return bool(self._templates)

    @property
    def template(self) -> str:
        """Return the chat template's text; empty if there is none."""
        found = self._templates.get(DEFAULT_TEMPLATE) or next(iter(self._templates.values()), None)
        return "" if found is None else found.text

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """Return what the model can do, as far as its files tell."""
        variables = {name for found in self._templates.values() for name in found.variables}
        found = {"completion"}
        if "tools" in variables or TOOL_TEMPLATE in self._templates:
            found.add("tools")
        if self.thought.begin in self._shown or variables & {"enable_thinking", "thinking"}:
            found.add("thinking")
        if self._fill_marks:
            found.add("insert")
        return frozenset(found)

    @cached_property
    def syntax(self) -> ToolSyntax:
        """Return how the model writes calls of tools."""
        return find_syntax(self._shown)

    @cached_property
    def thought(self) -> Thought:
        """Return what the model puts around its thinking."""
        return find_thought(self._shown)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text. Special tokens written in it are recognised in any case.

        special: whether what begins and ends a text is put around it: for plain prompts, not for
        what a template rendered, which has it already.
        """
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        # Of its ways to encode, this one lets other threads run meanwhile: a server's event loop.
        encoded = self._tokenizer.encode_batch_fast([whole], add_special_tokens=special)
        ids: list[int] = encoded[0].ids
        return ids

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_prompt: bool = True,
        think: bool | None = None,
    ) -> str:
        """Return messages in the form of the model's chat template.

        messages: as Transformers takes them; a call's arguments are an object. add_prompt: whether
        an assistant's answer is begun. think: whether the model should think first; None leaves
        that to the template. Raises InvalidRequestError if there is no template, or it refuses.
        """
        wanted = TOOL_TEMPLATE if tools and TOOL_TEMPLATE in self._templates else DEFAULT_TEMPLATE
        template = self._templates.get(wanted)
        if template is None:
            raise InvalidRequestError(
                f"messages: {self._files.path} has no chat template: ask for a completion of a "
                "plain prompt, or create a model with a template from it"
            )
        thinking = {} if think is None else {"enable_thinking": think, "thinking": think}
        return template.render(
            messages,
            tools=tools,
            add_prompt=add_prompt,
            variables={**self._files.roles, **thinking},
        )

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_prompt: bool = True,
        think: bool | None = None,
    ) -> list[int]:
        """Return the ids of what `render` returns."""
        text = self.render(messages, tools=tools, add_prompt=add_prompt, think=think)
        return self.encode(text, special=False)

    def insertion(self, before: str, after: str) -> list[int]:
        """Return the ids that ask for the text between two others.

        Raises InvalidRequestError if the model was not made for that.
        """
        if not self._fill_marks:
            raise InvalidRequestError(
                f"suffix: {self._files.path} cannot insert text: its vocabulary has no marks for it"
            )
        first, second, last = (self._id(mark) for mark in self._fill_marks)
        left, right = self.encode(before, special=False), self.encode(after, special=False)
        ids = [self.begin, first, *left, second, *right, last]
        return [id_ for id_ in ids if id_ is not None]

    def grammar(
        self, form: Literal["json"] | Mapping[str, Any], *, think: bool = False, prompt: str = ""
    ) -> Grammar:
        """Return the grammar of answers that are a JSON object, or what a JSON schema describes.

        think and prompt: as AnswerParser takes them; a thought may come first. Raises
        InvalidRequestError naming what in a schema cannot be followed.
        """
        schema = _ANY_OBJECT if form == "json" else form
        if not isinstance(schema, Mapping):
            raise InvalidRequestError(f'format: {form!r} is neither "json" nor a JSON schema')
        return self._vocabulary.grammars.json(schema, **self._thinking(think=think, prompt=prompt))

    def tool_grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        name: str | None = None,
        think: bool = False,
        prompt: str = "",
    ) -> Grammar:
        """Return the grammar of answers that call one of the tools; `name`: that one.

        Raises InvalidRequestError if there is none, or its parameters cannot be followed.
        """
        wanted = [tool for tool in tools if name in {None, tool.get("function", tool)["name"]}]
        if not wanted:
            raise InvalidRequestError(
                f"tool_choice: {name} is not among the tools" if name else "tool_choice: no tools"
            )
        thinking = self._thinking(think=think, prompt=prompt)
        return self._vocabulary.grammars.calls(self.syntax, wanted, **thinking)

    def _thinking(self, *, think: bool, prompt: str) -> dict[str, Any]:
        opened = prompt.rstrip().endswith(self.thought.begin)
        return {"thought": self.thought if think else None, "opened": opened}

    @cached_property
    def _shown(self) -> str:
        """All templates, to look for what they are about."""
        return "\n".join(template.text for template in self._templates.values())

    @cached_property
    def _fill_marks(self) -> tuple[str, ...]:
        known = (marks for marks in _FILLS if all(self._id(mark) is not None for mark in marks))
        return next(known, ())

    def _id(self, token: str | None) -> int | None:
        id_: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return id_


class _Vocabulary:
    """What is made of a tokenizer once, and does not depend on templates."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = _build_tokenizer(files)
        self.token_bytes = TokenBytes.parse(files.tokenizer)
        self._lock = Lock()
        self._grammars: Grammars | None = None

    @property
    def grammars(self) -> Grammars:
        """What makes grammars, once there is a need for one: it takes a second to prepare."""
        with self._lock:
            if self._grammars is None:
                from sllm.text.grammar import Grammars

                self._grammars = Grammars(self.files.tokenizer_text, self.files.ends)
            return self._grammars


def _build_tokenizer(files: ModelFiles) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(files.tokenizer_text)
    except Exception as error:
        raise UnsupportedModelError(
            f"{files.path}: the tokenizers library refuses tokenizer.json: {error}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _compile(files: ModelFiles, text: str) -> ChatTemplate:
    try:
        return ChatTemplate(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{files.path}: {error}") from error
