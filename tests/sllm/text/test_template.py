"""Templates render as in Transformers, in a sandbox, and say why they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sllm.core.errors import InvalidRequestError
from sllm.text.template import ChatTemplate
from tests.sllm.text.conftest import TEMPLATES, WEATHER

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Is 1 < 2 & 'so'?"}],
    [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "thinking": "hm\n", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sun": true}'},
        {"role": "assistant", "content": "Sunny 😀"},
        {"role": "user", "content": "Thanks"},
    ],
]
SMALL = [
    "{{ {'a': '<&>', 'é': [1, 2.5, none, true]} | tojson }}",
    "{{ messages | tojson(indent=2, sort_keys=true) }}",
    "{% for m in messages %}\n  {% if loop.first %}\n  1st\n{% endif %}\n{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}\n",
    "{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(x=1) }}{{ tools is none }}",
    "{{ strftime_now('%Y') }}{{ documents is none }}{{ missing is defined }}{{ missing }}",
]


def _theirs(text: str, messages: Any, *, tools: Any = None, **variables: Any) -> str:
    render: Any = render_jinja_template
    rendered, _ = render(
        [messages], tools=tools, chat_template=text, add_generation_prompt=True, **variables
    )
    return str(rendered[0])


@pytest.mark.parametrize("chat", CHATS, ids=["short", "long"])
@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
@pytest.mark.parametrize("tools", [(), (WEATHER,)], ids=["no-tools", "tools"])
@pytest.mark.parametrize("template", [*TEMPLATES.values(), *SMALL])
def test_text_equals_that_of_transformers(
    template: str, tools: tuple[Any, ...], thinking: dict[str, bool], chat: Any
) -> None:
    variables: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", **thinking}
    ours = ChatTemplate(template).render(chat, tools=tools, variables=variables)
    assert ours == _theirs(template, chat, tools=list(tools) or None, **variables)


def test_a_template_s_own_reason_is_told() -> None:
    template = ChatTemplate(TEMPLATES["hermes"])
    with pytest.raises(InvalidRequestError, match="refuses: the role other is unknown"):
        template.render([{"role": "other", "content": ""}], variables={})


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ 5 | dictsort }}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_what_a_template_cannot_render_is_the_request_s_error(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="messages: the chat template"):
        ChatTemplate(text).render([{"role": "user", "content": "1"}], variables={})


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__ }}{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ dict.fromkeys.__globals__ }}{{ dict.fromkeys.__globals__.x }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="messages: the chat template refuses"):
        ChatTemplate(text).render([{"role": "user", "content": "1"}], variables={})


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Prompt }}",
        "{{ if .System }}x",
        '{{- if eq .Role "user" }}x',
        "{{ range $i, $_ := .Messages }}",
        "x {{- end }}",
    ],
)
def test_a_template_of_gos_is_told_apart(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="one of Go's"):
        ChatTemplate(text)


@pytest.mark.parametrize("text", ["{{ range(2) }}", "{{ template }}", "{{ ending }}", "{{ a.B }}"])
def test_names_like_gos_words_are_let_through(text: str) -> None:
    assert ChatTemplate(text).text == text


@pytest.mark.parametrize("text", ["{% if %}", "{{", "{% nonsense %}", "{{ 1 | no }}"])
def test_what_is_no_template_is_refused_with_the_line(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a Jinja template: line 1: "):
        ChatTemplate(text)


def test_messages_are_left_as_they_were() -> None:
    message = {"role": "user", "content": "x", "thinking": "y"}
    ChatTemplate("{{ messages }}").render([message], variables={})
    assert message == {"role": "user", "content": "x", "thinking": "y"}
