"""Shapes of what Ollama's API answers, for the OpenAPI schema; streams have them line by line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Failed(BaseModel):
    """Whatever failed."""

    error: str


class Details(BaseModel):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(BaseModel):
    """A model of this machine."""

    name: str
    model: str
    digest: str
    details: Details
    modified_at: str
    size: int


class Tags(BaseModel):
    """GET /api/tags."""

    models: list[Tag]


class Tiers(BaseModel):
    """Numbers of the device's memory, of host memory or the link to it, and of the disk."""

    device: float | None
    host: float | None
    disk: float | None


class Forecast(BaseModel):
    """What bounds a loaded model: a field that Ollama does not have."""

    bound: str | None
    tokens_per_s: float | None
    stored_bytes: Tiers
    token_bytes: Tiers
    bytes_per_s: Tiers
    expert_hit_rate: float | None


class Running(BaseModel):
    """A model that is loaded."""

    name: str
    model: str
    digest: str
    details: Details
    size: int
    size_vram: int
    expires_at: str
    context_length: int
    forecast: Forecast | None = None


class RunningModels(BaseModel):
    """GET /api/ps."""

    models: list[Running]


class Version(BaseModel):
    """GET /api/version."""

    version: str


class Spoken(BaseModel):
    """A message that conversations begin with."""

    role: str
    content: str


class Tensor(BaseModel):
    """A tensor of a checkpoint."""

    name: str
    type: str
    shape: list[int]


class Shown(BaseModel):
    """POST /api/show."""

    license: str
    modelfile: str
    parameters: str
    template: str
    system: str
    messages: list[Spoken]
    details: Details
    model_info: dict[str, Any]
    tensors: list[Tensor] | None = None
    capabilities: list[str]
    modified_at: str


class Status(BaseModel):
    """How far a pull or a create is."""

    status: str
    digest: str | None = None
    total: int | None = None
    completed: int | None = None


class Vectors(BaseModel):
    """POST /api/embed."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Vector(BaseModel):
    """POST /api/embeddings."""

    embedding: list[float]


class Alternative(BaseModel):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(Alternative):
    """A token of the answer, and others in its place."""

    top_logprobs: list[Alternative] | None = None


class Text(BaseModel):
    """What answers to prompts and to conversations have in common. Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_cached_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[Logprob] | None = None


class Generated(Text):
    """POST /api/generate."""

    response: str
    thinking: str | None = None
    context: list[int] | None = None


class Function(BaseModel):
    """A tool, and what it is called with."""

    name: str
    arguments: dict[str, Any]


class Call(BaseModel):
    """A call of a tool."""

    id: str
    function: Function


class Message(BaseModel):
    """What is said."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[Call] | None = None


class Chatted(Text):
    """POST /api/chat."""

    message: Message
