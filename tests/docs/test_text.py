"""The examples of the page about text run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sllm.text.parser import Content, Thinking, ToolCall
from tests.docs.documents import DOCS, read_blocks
from tests.sllm.text.conftest import HERMES, WEATHER, byte_level

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.text.parser import Part


def test_the_examples_ask_and_read(tmp_path: Path) -> None:
    tokenizer = byte_level()
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (tmp_path / "chat_template.jinja").write_text(HERMES)
    (block,) = (b for b in read_blocks(DOCS / "text.md") if b.language == "python")
    names: dict[str, Any] = {}
    exec(compile(block.text, block.where, "exec"), names)
    prompt, ends = names["prepare"](tmp_path, "Rain?")
    asked = tokenizer.decode(prompt, skip_special_tokens=False)
    assert asked == "<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n"
    assert ends == {tokenizer.token_to_id(token) for token in ("</s>", "<|im_end|>")}
    said = '<think>hm</think>Yes. <tool_call>{"name": "weather"}</tool_call><|im_end|>'
    tokens = tokenizer.encode(said).ids
    parts = names["read"](tmp_path, tokens, tools=[WEATHER])
    assert _text(parts, Thinking) == "hm"
    assert _text(parts, Content) == "Yes."
    assert parts[-1] == ToolCall("call_0", "weather", {})
    stopped = names["read"](tmp_path, tokens, stop=["es"])
    assert (_text(stopped, Thinking), _text(stopped, Content)) == ("hm", "Y")


def _text(parts: list[Part], kind: type[Content | Thinking]) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))
