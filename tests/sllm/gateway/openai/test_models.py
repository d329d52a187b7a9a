"""What can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from sllm.library.models import Library


def test_models_are_listed_by_their_names(openai_client: openai.OpenAI) -> None:
    found = [model.id for model in openai_client.models.list()]
    assert found == ["able:latest", "base:latest", "plain:latest"]


def test_a_model_is_told_by_its_name(
    openai_client: openai.OpenAI, library: Library, models: Path
) -> None:
    library.create("org/plain:tiny", source=models / "plain")
    model = openai_client.models.retrieve("org/plain:tiny")
    assert (model.id, model.object) == ("org/plain:tiny", "model")
    assert model.created > 1_700_000_000


def test_an_unknown_model_is_not_found(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("nobody")
