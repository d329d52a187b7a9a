"""Small models' text files, as a publisher would publish them, and templates in known forms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sllm.text.model import TextModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|python_tag|>")
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

HERMES = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
    {{- '\\nAnswer <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- set state = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role == 'other' %}{{ raise_exception('the role other is unknown') }}{% endif %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- set state.count = state.count + 1 %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is string %}
        {{- '<think>\\n' + message.reasoning_content.strip() + '\\n</think>\\n\\n' }}
    {%- endif %}
    {%- generation %}{{- message.content or '' }}{% endgeneration %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
CODER = HERMES.replace('{"name": ..., "arguments": ...}', "<function=...>")
LLAMA = """\
{{- bos_token }}
{%- if tools is not none %}
    {{- 'Answer {"name": function name, "parameters": dictionary}.' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n' }}{% endfor %}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + (message['content'] | trim) + '</s>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS]' + (message.tool_calls | tojson) + eos_token }}
    {%- else %}{{- message.content + eos_token }}{% endif %}
{%- endfor %}
{%- if tools %}{{- '[TOOLS]' + (tools | tojson) }}{% endif %}
"""
TEMPLATES = {"hermes": HERMES, "coder": CODER, "llama": LLAMA, "mistral": MISTRAL}

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather & more <now>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "note": {"type": "string"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def byte_level(special: tuple[str, ...] = SPECIAL, plain: tuple[str, ...] = MARKS) -> Tokenizer:
    """A tokenizer with every byte, and marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={token: id_ for id_, token in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Write a model's text files: a tokenizer, and whatever else by name, JSON or text."""

    def write(tokenizer: Tokenizer | None = None, **files: Any) -> Path:
        contents: dict[str, Any] = {
            "tokenizer.json": json.loads((tokenizer or byte_level()).to_str()),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": {"content": "</s>", "__type": "AddedToken"},
            },
            **{name.replace("__", "."): value for name, value in files.items()},
        }
        for name, value in contents.items():
            text = value if isinstance(value, str) else json.dumps(value)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def model(publish: Callable[..., Path]) -> Callable[[str], TextModel]:
    """Open a model with one of the templates."""
    return lambda name: TextModel.open(publish(chat_template__jinja=TEMPLATES[name]))
