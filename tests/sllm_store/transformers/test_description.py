"""A checkpoint's description says whose names its tensors have, and what dtype to build under."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.convert.importer import import_checkpoint
from sllm_store.errors import InvalidCheckpointError
from sllm_store.torch import save_dict
from sllm_store.transformers import save_model
from sllm_store.transformers.description import describe_directory

if TYPE_CHECKING:
    from pathlib import Path


def describe(path: Path, dtype: torch.dtype | None = None) -> Any:
    return describe_directory(open_checkpoint(path), dtype, trust_remote_code=False)


def test_save_model_writes_the_modules_names_and_others_a_publishers(
    publish: Any, tmp_path: Path
) -> None:
    published = publish("llama")
    save_model(published.from_pretrained(), tmp_path / "own")
    import_checkpoint(published.path, tmp_path / "imported")
    assert not describe(tmp_path / "own").published
    assert describe(tmp_path / "imported").published
    assert describe(published.path).published


def test_the_dtype_is_the_callers_then_the_configs_then_the_first_tensors(
    publish: Any, tmp_path: Path
) -> None:
    path = publish("llama").path
    assert describe(path, torch.float32).dtype == torch.float32
    assert describe(path).dtype == torch.bfloat16
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    state = {"i": torch.ones(2, dtype=torch.int8), "h": torch.ones(2, dtype=torch.float16)}
    save_dict(state, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    assert describe(tmp_path / "bare").dtype == torch.float16
    save_dict({"i": torch.ones(2, dtype=torch.int8)}, tmp_path / "bare")
    assert describe(tmp_path / "bare").dtype == torch.float32


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    save_dict({"w": torch.ones(2)}, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(InvalidCheckpointError, match=r"config\.json"):
        describe(tmp_path / "m")
