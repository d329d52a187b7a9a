"""Shapes of what OpenAI's API answers, for the OpenAPI schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Failure(BaseModel):
    """What failed, and which field is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(BaseModel):
    """Whatever failed."""

    error: Failure


class PromptDetails(BaseModel):
    """Tokens of a prompt that needed no computing."""

    cached_tokens: int


class AnswerDetails(BaseModel):
    """Tokens of an answer that were thoughts."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: AnswerDetails | None = None


class Alternative(BaseModel):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(Alternative):
    """A token of the answer, and others in its place."""

    top_logprobs: list[Alternative]


class Logprobs(BaseModel):
    """Probabilities of a whole answer, token by token."""

    content: list[Logprob]
    refusal: None


class Function(BaseModel):
    """A tool, and the JSON that it is called with."""

    name: str
    arguments: str


class Call(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: Function


class Message(BaseModel):
    """What is said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None


class Choice(BaseModel):
    """One of the answers to a conversation."""

    index: int
    message: Message
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class TextLogprobs(BaseModel):
    """Probabilities of a text, a list for each."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the texts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class EmbeddingsUsage(BaseModel):
    """Tokens of texts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """A vector, or the base64 of its 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class Model(BaseModel):
    """GET /v1/models/{name}."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class InputDetails(BaseModel):
    """Tokens of an input that needed no computing."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: AnswerDetails
    total_tokens: int


class ResponseError(BaseModel):
    """Why a response failed."""

    code: str
    message: str


class Incomplete(BaseModel):
    """Why a response ends too early."""

    reason: Literal["max_output_tokens"]


class Response(BaseModel):
    """POST /v1/responses. What a request said is told again."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: Incomplete | None
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    model: str
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int | None = None
    top_p: float | None
    truncation: Literal["auto", "disabled"]
