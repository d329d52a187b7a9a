"""Of a repository, only what a model needs is fetched."""

from __future__ import annotations

import pytest

from sllm.core.errors import PullError
from sllm.library.hub_files import HubFile, choose_files


def choose(names: list[str], tag: str = "latest") -> tuple[list[str], str]:
    files = [HubFile(name=name, size_bytes=1, blob="", sha256=None) for name in names]
    choice = choose_files("org/name", files, tag)
    return [file.name for file in choice.files], choice.path


def test_shards_come_with_their_index_and_without_other_formats() -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "model.safetensors.index.json"
    needed = ["config.json", "tokenizer.model", *shards, index]
    others = ["consolidated.safetensors", "pytorch_model.bin", "a/model.safetensors", "x.png"]
    found, path = choose([*others, *needed])
    assert sorted(found) == sorted(needed)
    assert path == "."


def test_a_gguf_in_parts_comes_whole() -> None:
    parts = [f"Q4_K_M/m-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert choose([*reversed(parts), "m-Q8_0.gguf"]) == (parts, parts[0])


def test_safetensors_win_unless_a_quantisation_is_named() -> None:
    names = ["model.safetensors", "m.Q4_0.gguf", "config.json"]
    assert choose(names)[1] == "."
    assert choose(names, "q4_0") == (["m.Q4_0.gguf"], "m.Q4_0.gguf")


@pytest.mark.parametrize(
    ("names", "tag", "found"),
    [
        (["a-Q8_0.gguf", "a-q4_0.gguf"], "latest", "a-q4_0.gguf"),
        (["a-IQ2_XS.gguf"], "latest", "a-IQ2_XS.gguf"),
        (["plain.gguf"], "latest", "plain.gguf"),
        (["a-BF16.gguf", "mmproj-a-F16.gguf"], "bf16", "a-BF16.gguf"),
    ],
)
def test_a_file_is_found_by_its_quantisation(names: list[str], tag: str, found: str) -> None:
    assert choose(names, tag) == ([found], found)


def test_what_cannot_be_chosen_is_told() -> None:
    with pytest.raises(PullError, match="pull org/name:TAG with one of Q2_K, Q3_K_S"):
        choose(["a-Q2_K.gguf", "a-Q3_K_S.gguf"])
    with pytest.raises(PullError, match="neither"):
        choose(["adapter_model.safetensors", "mmproj.gguf"])
