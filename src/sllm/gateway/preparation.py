"""Make an engine's request of what a client asked: prompt ids, parameters, ends and grammar."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import TYPE_CHECKING, Any

from sllm.core.errors import ContextLengthError, InvalidRequestError
from sllm.core.requests import TokenRequest
from sllm.gateway.asked import Chat, Plain
from sllm.gateway.options import parse_options, sampling
from sllm.text.parser import AnswerParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sllm.core.requests import Grammar
    from sllm.gateway.asked import Asked
    from sllm.gateway.host import Loaded
    from sllm.text.model import TextModel

    Messages = Sequence[Mapping[str, Any]]

ANSWER_SHARE = 4  # Of the context, that part is kept for the answer to a long conversation.
KEPT_TOKENS = 4  # At the beginning of a prompt that is cut: Ollama keeps as many if not told.
_FIXED_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What an engine is given, and how its answer is to be read. parse: None for plain text.

    echo: what the answer begins with, if it is to tell the prompt. alone: whether that is all.
    """

    request: TokenRequest
    text: TextModel
    parse: Callable[[], AnswerParser] | None
    echo: str | None
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    ids: tuple[int, ...]
    shown: str = ""
    echo: str | None = None
    alone: bool = False


def prepare(
    asked: Asked, loaded: Loaded, text: TextModel, *, logprobs: int | None = None
) -> Prepared:
    """Return what to submit. Blocks for the time that tokenizing takes.

    text: the model's, or one with another template. Raises InvalidRequestError for what the model
    cannot do, InvalidSamplingError, and ContextLengthError for a prompt without room for an answer.
    """
    options = parse_options(asked.defaults, loaded.model.parameters, asked.options)
    context_tokens = loaded.engine.context_tokens
    if options.get("num_ctx", 0) > 0:
        context_tokens = min(context_tokens, options["num_ctx"])
    limit_tokens = context_tokens - _kept_room(options, context_tokens)
    think = _think(asked, loaded, text)
    if isinstance(asked.prompt, Plain):
        prompt = _plain(asked.prompt, text)
    else:
        _require_tools(asked, loaded, text)
        prompt = _chat(asked, loaded, text, think=think, limit_tokens=limit_tokens)
    if asked.cut and len(prompt.ids) >= context_tokens:
        kept_tokens = options.get("num_keep", KEPT_TOKENS)
        ids = _without_middle(prompt.ids, limit_tokens, kept_tokens=kept_tokens)
        prompt = replace(prompt, ids=ids)
    room_tokens = context_tokens - len(prompt.ids)
    if room_tokens < 1:
        raise ContextLengthError(
            f"the prompt has {len(prompt.ids)} tokens, and the context {context_tokens}: shorten "
            "the prompt, or serve with a larger context"
        )
    if not prompt.ids:
        raise InvalidRequestError("prompt: it is empty, and the model has no token to begin with")
    parameters = sampling(options, logprobs=logprobs, room_tokens=room_tokens)
    thinks = think is not False and "thinking" in text.capabilities and bool(prompt.shown)
    parse = None
    if prompt.shown:
        parse = _parsing(asked, text, prompt.shown, think=thinks)
    return Prepared(
        request=TokenRequest(
            prompt=prompt.ids,
            parameters=parameters,
            ends=text.ends,
            grammar=_grammar(asked, text, prompt.shown, think=thinks),
            reports_prompt=prompt.echo is not None and logprobs is not None,
        ),
        text=text,
        parse=parse,
        echo=prompt.echo,
        alone=prompt.alone,
    )


def _kept_room(options: Mapping[str, Any], context_tokens: int) -> int:
    """Return how many tokens of the context are for the answer where messages are left out."""
    wanted = options.get("num_predict", -1)
    most = max(context_tokens // ANSWER_SHARE, 1)
    return min(wanted, most) if wanted > 0 else most


def _without_middle(
    ids: tuple[int, ...], limit_tokens: int, *, kept_tokens: int
) -> tuple[int, ...]:
    """Return the first ids, and as many of the last ones as the limit leaves; one at least.

    kept_tokens: how many first ones; a negative number stands for as many as can be.
    """
    most = max(limit_tokens - 1, 0)
    first = most if kept_tokens < 0 else min(kept_tokens, most)
    return ids[:first] + ids[len(ids) - max(limit_tokens - first, 1) :]


def _think(asked: Asked, loaded: Loaded, text: TextModel) -> bool | None:
    """Return whether to ask for thoughts; None leaves it to the template."""
    if "thinking" not in text.capabilities:
        if asked.think:
            raise InvalidRequestError(f'think: "{loaded.model.name}" does not support thinking')
        return None
    return asked.think


def _require_tools(asked: Asked, loaded: Loaded, text: TextModel) -> None:
    if asked.tools.offered and "tools" not in text.capabilities:
        raise InvalidRequestError(f'tools: "{loaded.model.name}" does not support tools')


def _parsing(
    asked: Asked, text: TextModel, shown: str, *, think: bool
) -> Callable[[], AnswerParser]:
    """Return what makes a parser. Calls have names that no other answer's calls have."""
    offered = asked.tools.offered
    return lambda: AnswerParser(
        text,
        tools=offered,
        think=think,
        prompt=shown,
        new_id=lambda: f"call_{secrets.token_hex(12)}",
    )


def _grammar(asked: Asked, text: TextModel, shown: str, *, think: bool) -> Grammar | None:
    choice = asked.tools.choice
    if choice != "auto":
        name = None if choice == "required" else choice
        return text.tool_grammar(asked.tools.offered, name=name, think=think, prompt=shown)
    if asked.format is None:
        return None
    return text.grammar(asked.format, think=think, prompt=shown)


def _plain(prompt: Plain, text: TextModel) -> _Prompt:
    found = _continued(prompt, text)
    if not prompt.echo:
        return found
    table = text.token_bytes.table
    echo = prompt.text or b"".join(table[token] for token in found.ids).decode(errors="replace")
    return _Prompt(ids=found.ids, echo=echo, alone=prompt.alone)


def _continued(prompt: Plain, text: TextModel) -> _Prompt:
    if prompt.ids:
        table = text.token_bytes.table
        unknown = next((token for token in prompt.ids if token not in table), None)
        if unknown is not None:
            raise InvalidRequestError(f"prompt: the model has no token {unknown}")
        return _Prompt(ids=prompt.ids)
    if prompt.suffix:
        return _Prompt(ids=tuple(text.insertion(prompt.text, prompt.suffix)))
    return _Prompt(ids=tuple(text.encode(prompt.text, special=True)))


def _chat(
    asked: Asked, loaded: Loaded, text: TextModel, *, think: bool | None, limit_tokens: int
) -> _Prompt:
    """Return the prompt of a conversation, without what is oldest if it goes beyond the limit.

    The ids of an earlier answer go first, then turns. The last turn stays in any case.
    """
    chat = asked.prompt
    assert isinstance(chat, Chat)
    if chat.single and not text.has_template:
        return _plain(Plain(text=str(chat.messages[0]["content"])), text)
    messages = _with_defaults(chat, loaded)

    def render(kept: Messages, context: tuple[int, ...] = ()) -> _Prompt:
        shown = text.render(kept, tools=asked.tools.offered, think=think)
        return _Prompt(ids=(*context, *text.encode(shown, special=False)), shown=shown)

    whole = render(messages, chat.context)
    excess = len(whole.ids) - limit_tokens
    if excess <= 0 or not asked.truncate:
        return whole
    if excess <= len(chat.context):
        return replace(whole, ids=whole.ids[excess:])
    fixed = [message for message in messages if message["role"] in _FIXED_ROLES]
    others = [message for message in messages if message["role"] not in _FIXED_ROLES]
    # A turn begins with what a user says; many templates refuse a conversation that does not.
    turns = [place for place, message in enumerate(others) if message["role"] == "user"]
    turns = turns or [max(len(others) - 1, 0)]
    low, high = 0, len(turns) - 1
    while low < high:
        middle = (low + high) // 2
        if len(render([*fixed, *others[turns[middle] :]]).ids) <= limit_tokens:
            high = middle
        else:
            low = middle + 1
    return render([*fixed, *others[turns[low] :]])


def _with_defaults(chat: Chat, loaded: Loaded) -> Messages:
    """Return the messages after those of the model's maker, and one system message before all.

    That is the request's, or the one that its maker's messages begin with, or the model's.
    """
    own = () if chat.context else loaded.model.messages  # An earlier answer's ids begin with them.
    made = [{"role": role, "content": content} for role, content in own]
    first, said = _split(chat.messages)
    made_first, made_rest = _split(made)
    system = loaded.model.system
    if chat.system is not None:
        first = first or [{"role": "system", "content": chat.system}]
    first = first or made_first or ([{"role": "system", "content": system}] if system else [])
    return [*first, *made_rest, *said]


def _split(messages: Messages) -> tuple[Messages, Messages]:
    """Return the system messages at the beginning, and the rest."""
    rest = list(dropwhile(lambda message: message["role"] in _FIXED_ROLES, messages))
    return messages[: len(messages) - len(rest)], rest
