"""Models, told and changed, through Ollama's own client."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import ollama
import pytest

from sllm.text.model import TextModel

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from sllm.library.models import Library


def test_the_server_is_found_where_clients_look_for_it(http: httpx.Client) -> None:
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200
    assert http.head("/api/version").status_code == 200
    assert http.get("/api/version").json()["version"]


def test_models_are_listed_with_their_details(ollama_client: ollama.Client) -> None:
    models = ollama_client.list().models
    assert [model.model for model in models] == ["able:latest", "base:latest", "plain:latest"]
    assert models[0].details is not None
    assert models[0].details.family == "llama"
    assert models[0].size
    assert models[0].digest


def test_a_model_whose_files_are_gone_is_told_with_what_to_do(
    ollama_client: ollama.Client, library: Library, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "plain", tmp_path / "gone")
    library.create("gone", source=tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(ollama.ResponseError, match="put it back, or pull the model again"):
        ollama_client.show("gone")


def test_show_tells_what_a_model_can(ollama_client: ollama.Client) -> None:
    shown = ollama_client.show("able")
    assert shown.capabilities == ["completion", "thinking", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert "im_start" in (shown.template or "")
    assert "FROM" in (shown.modelfile or "")


def test_tensors_are_shown_to_whoever_asks_for_all(http: httpx.Client) -> None:
    asked = {"model": "able", "verbose": True}
    shown = http.post("/api/show", json=asked).json()
    assert shown["tensors"] == [{"name": "w", "type": "F32", "shape": [2]}]
    assert "tensors" not in http.post("/api/show", json=asked | {"verbose": False}).json()


def test_a_loaded_model_is_shown_without_opening_it_again(
    ollama_client: ollama.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ollama_client.show("able")
    ollama_client.generate("able", "Hi")
    monkeypatch.delattr(TextModel, "open")
    assert ollama_client.show("able") == before


def test_a_loaded_model_is_listed_with_its_end(ollama_client: ollama.Client) -> None:
    ollama_client.generate("plain", "Hi", keep_alive="10m")
    (model,) = ollama_client.ps().models
    assert model.model == "plain:latest"
    assert model.context_length == 4096
    assert model.expires_at is not None


def test_copies_are_made_and_deleted(ollama_client: ollama.Client) -> None:
    ollama_client.copy("plain", "other")
    assert ollama_client.generate("other", "Hi").response
    ollama_client.delete("other")
    assert "other:latest" not in [model.model for model in ollama_client.list().models]
    assert ollama_client.ps().models == []
    with pytest.raises(ollama.ResponseError) as caught:
        ollama_client.delete("other")
    assert caught.value.status_code == 404


def test_a_model_is_made_out_of_another(ollama_client: ollama.Client) -> None:
    done = ollama_client.create(
        "pirate", from_="plain", system="Arr.", parameters={"temperature": 0}
    )
    assert done.status == "success"
    shown = ollama_client.show("pirate")
    assert "temperature" in (shown.parameters or "")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/push", {"model": "plain"}),
        ("/api/create", {"model": "x", "files": {"a": "sha256:1"}}),
        ("/api/create", {"model": "x", "from": "plain", "template": "{%"}),
        ("/api/create", {"model": "x", "from": "plain", "parameters": {"temperature": "hot"}}),
        ("/api/create", {"model": "x", "from": "plain", "parameters": {"top_p": 7}}),
        ("/api/blobs/sha256:1", {}),
        ("/api/show", {}),
    ],
)
def test_what_is_not_done_here_says_so(http: httpx.Client, path: str, body: object) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_no_blob_is_here(http: httpx.Client) -> None:
    assert http.head("/api/blobs/sha256:1").status_code == 404
    assert http.head("/api/blobs/%F3%B0%80%81").status_code == 404, "no header can carry it"
