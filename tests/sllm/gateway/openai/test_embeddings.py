"""Vectors of texts, in both encodings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    import httpx


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
