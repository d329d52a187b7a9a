"""Vectors of texts through Ollama's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import ollama


def test_each_text_has_a_vector(ollama_client: ollama.Client) -> None:
    found = ollama_client.embed("plain", ["abc", "ab"])
    assert found.embeddings == [[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]
    assert found.prompt_eval_count == 5


def test_long_texts_are_cut_and_vectors_shortened(ollama_client: ollama.Client) -> None:
    found = ollama_client.embed("plain", "x" * 5000, dimensions=2)
    assert found.prompt_eval_count == 4096
    assert list(found.embeddings[0]) == pytest.approx([0.0, 1.0])


def test_the_older_form_works(ollama_client: ollama.Client) -> None:
    assert ollama_client.embeddings("plain", "abc").embedding == [0.6, 0.8, 0.0]
