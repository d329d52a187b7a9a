"""Vectors of texts, in both encodings."""

from __future__ import annotations

import time
from typing import Any

import httpx
import openai
import pytest

from sllm.gateway import embedding
from tests.sllm.gateway.scripted import ScriptedEngine


def test_each_text_has_a_vector(http: httpx.Client) -> None:
    body = {"model": "plain", "input": ["abc", "ab"]}
    found = http.post("/v1/embeddings", json=body).json()
    assert [one["index"] for one in found["data"]] == [0, 1]
    assert found["data"][0]["embedding"] == [0.6, 0.8, 0.0]
    assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_a_null_for_the_encoding_is_none_given(http: httpx.Client) -> None:
    body = {"model": "plain", "input": "abc", "encoding_format": None, "dimensions": None}
    found = http.post("/v1/embeddings", json=body).json()
    assert found["data"][0]["embedding"] == [0.6, 0.8, 0.0]


def test_the_clients_own_encoding_is_understood(openai_client: openai.OpenAI) -> None:
    found = openai_client.embeddings.create(model="plain", input="abc")
    assert found.data[0].embedding == pytest.approx([0.6, 0.8, 0.0])


def test_shorter_vectors_have_length_one(openai_client: openai.OpenAI) -> None:
    found = openai_client.embeddings.create(model="plain", input="abc", dimensions=1)
    assert found.data[0].embedding == [1.0]


def test_ids_are_taken_for_text(openai_client: openai.OpenAI) -> None:
    found = openai_client.embeddings.create(model="plain", input=[[97, 98], [99]])
    assert found.usage.prompt_tokens == 3


@pytest.mark.parametrize("texts", [[""], "x" * 5000, [[99999]]])
def test_what_has_no_vector_is_refused(openai_client: openai.OpenAI, texts: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="input"):
        openai_client.embeddings.create(model="plain", input=texts)


def test_a_client_that_goes_ends_what_was_not_embedded_yet(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[int] = []

    def embed(_engine: ScriptedEngine, prompts: list[list[int]]) -> list[list[float]]:
        embedded.append(len(prompts))
        time.sleep(0.05)
        return [[1.0]] * len(prompts)

    monkeypatch.setattr(ScriptedEngine, "embed", embed)
    monkeypatch.setattr(embedding, "GROUP_TOKENS", 8)
    body = {"model": "plain", "input": ["abcd"] * 6}
    assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 200
    assert embedded == [2, 2, 2]
    embedded.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/embeddings", json=body | {"input": ["abcd"] * 400}, timeout=0.3)
    counted = -1
    while counted < len(embedded):
        counted = len(embedded)
        time.sleep(0.3)
    assert 0 < counted < 100
