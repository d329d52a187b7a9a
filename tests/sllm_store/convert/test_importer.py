"""Imports are whole or leave nothing, refuse what would destroy, and bring SmolLM2 to life."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import (
    CheckpointNotFoundError,
    InvalidCheckpointError,
    InvalidRequestError,
    LoadCancelledError,
)
from sllm_store.native import Control

ROOT = Path(__file__).parents[3]
PROMPT_START = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308]
ANSWER = [504, 3575, 282, 4649, 314, 7042, 30, 2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    save_file({"w": torch.ones(1 << 20), "v": torch.zeros(10)}, directory / "model.safetensors")
    return directory


def test_progress_counts_bytes_to_the_total(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = import_checkpoint(
        source, tmp_path / "target", on_progress=lambda done, total: seen.append((done, total))
    )
    total = 4 * (1 << 20) + 40
    assert report.size_bytes == total
    assert seen[-1] == (total, total)


def test_a_cancelled_import_leaves_nothing(source: Path, tmp_path: Path) -> None:
    control = Control()
    with pytest.raises(LoadCancelledError):
        import_checkpoint(
            source,
            tmp_path / "target",
            on_progress=lambda done, total: control.cancel(),
            control=control,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_target_is_replaced_as_a_whole(source: Path, tmp_path: Path) -> None:
    import_checkpoint(source, tmp_path / "target")
    (tmp_path / "target/stale.json").write_text("{}")
    import_checkpoint(source, tmp_path / "target")
    assert not (tmp_path / "target/stale.json").exists()


def test_a_target_that_holds_more_than_a_checkpoint_is_kept(source: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    import_checkpoint(source, work)  # Nothing is lost with an empty one.
    import_checkpoint(source, work / "inner")
    with pytest.raises(InvalidRequestError, match="holds another checkpoint, inner, which would"):
        import_checkpoint(source, work)
    assert list(open_checkpoint(work / "inner").tensors)
    thesis = tmp_path / "papers" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    with pytest.raises(InvalidRequestError, match="other things than a checkpoint, which would"):
        import_checkpoint(source, thesis.parent)
    assert thesis.read_text() == "precious"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensor.data_0").touch()
    import_checkpoint(source, tmp_path / "broken")
    assert len(list(tmp_path.glob(".*"))) == 0


@pytest.mark.parametrize("target", ["source", ".", "source/inside"])
def test_a_target_around_or_inside_the_source_is_refused(
    target: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match="choose"):
        import_checkpoint(source, tmp_path / target)
    assert [path.name for path in source.iterdir()] == ["model.safetensors"]


def test_an_unknown_dtype_is_refused_with_the_known_ones(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"'int8' is not known.*auto, float32"):
        import_checkpoint(source, tmp_path / "target", dtype="int8")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nothing"):
        import_checkpoint(tmp_path / "nothing", tmp_path / "target")


def test_a_vocabulary_without_tensors_is_no_model(workshop: Any) -> None:
    workshop.from_blocks({})
    with pytest.raises(InvalidCheckpointError, match="no tensors"):
        import_checkpoint(workshop.gguf, workshop.imported)


def test_without_the_extra_the_error_says_what_to_install(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.from_blocks({"token_embd.weight": (np.zeros((4, 8), np.float32), None)})
    for name in [name for name in sys.modules if name.startswith("sllm_store.convert.gguf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'serverless-llm\[gguf\]'"):
        import_checkpoint(workshop.gguf, workshop.imported)


def test_the_key_values_of_a_gguf_are_kept_without_its_vocabulary(workshop: Any) -> None:
    workshop.from_blocks({"token_embd.weight": (np.zeros((4, 8), np.float32), None)})
    import_checkpoint(workshop.gguf, workshop.imported)
    kept = json.loads((workshop.imported / "gguf_metadata.json").read_text())
    assert kept["general.architecture"] == "llama"
    assert kept["tokenizer.ggml.merges"] == ["h e", "l l", "he ll", "hell o"]
    assert "tokenizer.ggml.tokens" not in kept


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_smollm2_answers_with_the_golden_ids_and_has_transformers_weights(
    smollm2: Path, workshop: Any
) -> None:
    import_checkpoint(smollm2, workshop.imported)

    tensors = {
        name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
        for name, (_, shape, data) in workshop.read().items()
    }
    config = transformers.AutoConfig.from_pretrained(workshop.imported)
    model: Any = transformers.LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=tensors, dtype="auto"
    )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(workshop.imported)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert prompt["input_ids"].shape == (1, 37)
    assert prompt["input_ids"][0, :12].tolist() == PROMPT_START
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, 37:].tolist()
    assert answer == ANSWER
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."

    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name
    )
    state = theirs.state_dict()
    assert state.keys() - tensors.keys() == {"lm_head.weight"}
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
