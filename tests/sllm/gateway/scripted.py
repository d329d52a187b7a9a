"""A tiny model of bytes, and an engine that says what it is told to; nothing is computed."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from sllm.backends.engine import EngineState
from sllm.core.errors import ContextLengthError, EngineClosedError, QueueFullError
from sllm.core.requests import Choice, Finish, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sllm.core.requests import TokenRequest
    from sllm.gateway.settings import Settings

MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
END = 256 + MARKS.index("<|im_end|>")
CONTEXT_TOKENS = 4096
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\nAnswer with <tool_call> and </tool_call>: "
    "{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML
)
WITH_THOUGHTS = WITH_TOOLS + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def byte_characters() -> list[str]:
    """Return the characters that stand for the 256 bytes in a tokenizer of GPT-2's kind."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    return [
        chr(byte) if byte in _PRINTABLE else chr(256 + others.index(byte)) for byte in range(256)
    ]


def write_model(path: Path, template: str | None = WITH_THOUGHTS) -> Path:
    """Write a checkpoint with a token for each byte, and one tensor."""
    path.mkdir(parents=True)
    added = [
        {
            "id": 256 + place,
            "content": mark if template else mark.replace("im_start", "start"),
            "special": mark.startswith("<|"),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for place, mark in enumerate(MARKS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {character: byte for byte, character in enumerate(byte_characters())},
            "merges": [],
        },
    }
    config: dict[str, Any] = {"eos_token": "<|im_end|>"}
    if template is not None:
        config["chat_template"] = template
    model = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": CONTEXT_TOKENS,
        "hidden_size": 1,
        "vocab_size": 256 + len(MARKS),
        "eos_token_id": END,
    }
    for name, value in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
        ("config.json", model),
    ):
        (path / name).write_text(json.dumps(value))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    (path / "model.safetensors").write_bytes(data)
    return path


def ids_of(text: str) -> list[int]:
    """Return the tokens of a text, marks included."""
    ids: list[int] = []
    rest = text
    while rest:
        mark = next((mark for mark in MARKS if rest.startswith(mark)), None)
        if mark is not None:
            ids.append(256 + MARKS.index(mark))
            rest = rest.removeprefix(mark)
        else:
            ids += rest[0].encode()
            rest = rest[1:]
    return ids


def text_of(ids: Sequence[int]) -> str:
    """Return what tokens say, marks included."""
    raw = b"".join(bytes([id_]) if id_ < 256 else MARKS[id_ - 256].encode() for id_ in ids)
    return raw.decode(errors="replace")


class ScriptedTicket:
    """A request that the scripted engine has taken."""

    def __init__(self, request: TokenRequest, on_step: Callable[[Step], None]) -> None:
        self.request = request
        self.on_step = on_step
        self.cancelled = threading.Event()
        self.error: Exception | None = None

    def cancel(self) -> None:
        """End it."""
        self.cancelled.set()


class ScriptedEngine:
    """Answers every request with `script.answer`, a token a step, from a thread a request."""

    def __init__(self, script: Script, path: Path, settings: Settings) -> None:
        self.script = script
        self.path = path
        self.settings = settings
        self.closed = threading.Event()
        self.tickets: list[ScriptedTicket] = []
        self.context_tokens = settings.context_tokens or CONTEXT_TOKENS

    def submit(self, request: TokenRequest, on_step: Callable[[Step], None]) -> ScriptedTicket:
        """Take a request."""
        if self.closed.is_set():
            raise EngineClosedError("closed")
        if self.script.full:
            raise QueueFullError("too many wait", retry_after_s=2.5)
        if len(request.prompt) >= self.context_tokens:
            raise ContextLengthError("too long")
        ticket = ScriptedTicket(request, on_step)
        self.tickets.append(ticket)
        threading.Thread(target=self._answer, args=[ticket], daemon=True).start()
        return ticket

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return vectors of length 1 that depend on the number of tokens."""
        return [[0.6, 0.8, 0.0] if len(prompt) % 2 else [0.0, 0.6, 0.8] for prompt in prompts]

    def state(self) -> EngineState:
        """Return what it would hold."""
        running = sum(not ticket.cancelled.is_set() for ticket in self.tickets)
        return EngineState(
            weight_bytes=8,
            device_bytes=4,
            device="cpu",
            context_tokens=self.context_tokens,
            running=running,
            waiting=0,
            tokens_per_s=10.0,
        )

    def close(self) -> None:
        """End every request."""
        self.closed.set()
        for ticket in self.tickets:
            ticket.error = EngineClosedError("the model was unloaded")
            ticket.cancelled.set()

    def _answer(self, ticket: ScriptedTicket) -> None:
        request = ticket.request
        first = True
        for count, choice in enumerate(self.script.choices(request)):
            if count >= self.script.free_tokens:
                while not (self.script.go.wait(0.01) or ticket.cancelled.is_set()):
                    pass
            if ticket.cancelled.is_set():
                step = Step(error=ticket.error) if ticket.error else Step(finish=Finish.CANCELLED)
                ticket.on_step(step)
                return
            finish = None
            if choice.token in request.ends:
                finish = Finish.STOP
            elif count + 1 == request.parameters.max_tokens:
                finish = Finish.LENGTH
            told = self.script.reports(request) if first else ()
            cached = 3 if first else 0
            ticket.on_step(Step(choices=(choice,), finish=finish, cached=cached, prompt=told))
            first = False
            if finish is not None:
                return
        ticket.on_step(Step(error=self.script.error or RuntimeError("the script is over")))


class Script:
    """What engines say, and how models open.

    answer: the text; ends with the end token unless `error` ends it. After `free_tokens` tokens
    engines wait for `go`. opened: engines so far; `may_open` holds loads back, and `opening` is set
    when one begins.
    """

    def __init__(self) -> None:
        self.answer = "Hello there."
        self.error: Exception | None = None
        self.full = False
        self.free_tokens = 1 << 30
        self.go = threading.Event()
        self.opening = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self.load_error: Exception | None = None
        self.opened: list[ScriptedEngine] = []

    def open_engine(self, path: Path, settings: Settings) -> ScriptedEngine:
        """Open an engine."""
        self.opening.set()
        self.may_open.wait(10)
        if self.load_error is not None:
            raise self.load_error
        self.opened.append(ScriptedEngine(self, path, settings))
        return self.opened[-1]

    @property
    def requests(self) -> list[TokenRequest]:
        """Return every request that any engine was given."""
        return [ticket.request for engine in self.opened for ticket in engine.tickets]

    @property
    def prompts(self) -> list[str]:
        """Return the prompts of all requests."""
        return [text_of(request.prompt) for request in self.requests]

    def reports(self, request: TokenRequest) -> tuple[Choice, ...]:
        """Return the prompt's tokens with their probabilities, if they are asked for."""
        if not request.reports_prompt:
            return ()
        return tuple(
            Choice(token=token, logprob=-0.25 if place else None, top=((token, -0.25),))
            for place, token in enumerate(request.prompt)
        )

    def choices(self, request: TokenRequest) -> Iterator[Choice]:
        """Yield the tokens of an answer, with their probabilities if they are asked for."""
        ids = [*ids_of(self.answer), *([] if self.error else [END])]
        for token in ids:
            if request.parameters.logprobs is None:
                yield Choice(token=token)
            else:
                top = tuple((token + n, -0.5 - n) for n in range(request.parameters.logprobs))
                yield Choice(token=token, logprob=-0.5, top=top)
