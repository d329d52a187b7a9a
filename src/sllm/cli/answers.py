"""Answers as they arrive: text to stdout, thoughts and figures to stderr."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sllm.cli.terminal import format_duration, note, say

if TYPE_CHECKING:
    from collections.abc import Generator

_NS = 1_000_000_000


@dataclass(slots=True)
class Answer:
    """What was answered, as far as it came. interrupted: by Ctrl-C."""

    text: str = ""
    interrupted: bool = False


def write_answer(
    steps: Generator[dict[str, Any], None, None], *, hide_thinking: bool, verbose: bool
) -> Answer:
    """Write an answer while it is made; Ctrl-C ends it, here and on the server."""
    answer = Answer()
    thinking = False
    last: dict[str, Any] = {}
    with closing(steps):
        try:
            for step in steps:
                thought, text = _parts_of(step)
                if thought and not hide_thinking:
                    if not thinking:
                        note("Thinking...", dim=True)
                    thinking = True
                    note(thought, end="", dim=True)
                if text:
                    if thinking:
                        note("\n...done thinking.\n", dim=True)
                    thinking = False
                    say(text, end="")
                    answer.text += text
                last = step
        except KeyboardInterrupt:
            answer.interrupted = True
    say("")
    if verbose and last.get("done"):
        write_figures(last)
    return answer


def write_figures(last: dict[str, Any]) -> None:
    """Write durations and rates, as Ollama names them."""
    note("")
    for name in ("total", "load"):
        _figure(f"{name} duration", format_duration(last.get(f"{name}_duration") or 0))
    for name in ("prompt_eval", "eval"):
        count, duration = last.get(f"{name}_count") or 0, last.get(f"{name}_duration") or 0
        label = name.replace("_", " ")
        _figure(f"{label} count", f"{count} token(s)")
        _figure(f"{label} duration", format_duration(duration))
        if duration:
            _figure(f"{label} rate", f"{count * _NS / duration:.2f} tokens/s")


def _figure(name: str, value: str) -> None:
    note(f"{name + ':':<22}{value}")


def _parts_of(step: dict[str, Any]) -> tuple[str, str]:
    """Return thought and text of a line of /api/chat or /api/generate."""
    message = step.get("message") or step
    return message.get("thinking") or "", message.get("content") or step.get("response") or ""
