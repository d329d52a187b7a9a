"""What says what a GGUF is comes over HTTP without the rest of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import huggingface_hub.constants
import numpy as np
import pytest

from sllm.library import gguf_beginning
from sllm.library.gguf_beginning import fetch_beginning
from sllm_store.errors import InvalidCheckpointError
from sllm_store.groups.description import describe_checkpoint
from tests.sllm.library.fake_hub import COMMIT, serve_hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sllm.library.fake_hub import FakeHub

FACTORS = np.arange(1, 9, dtype=np.float32)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, and beginnings that are much smaller than usual."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(gguf_beginning, "FIRST_BYTES", 100)
    with serve_hub() as served:
        yield served


@pytest.fixture
def whole(tmp_path: Path, hub: FakeHub) -> Path:
    """A GGUF of 400 KB, whose last tensor are factors of its rope, at `org/model` of the hub."""
    path = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.ones((100, 1000), np.float32))
    writer.add_tensor("rope_freqs.weight", FACTORS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hub.repositories["org/model"] = {"whole.gguf": path.read_bytes()}
    return path


def url_of(hub: FakeHub) -> str:
    return f"{hub.url}/org/model/resolve/{COMMIT}/whole.gguf"


def test_a_beginning_describes_what_the_whole_does(
    hub: FakeHub, whole: Path, tmp_path: Path
) -> None:
    target = tmp_path / "beginning.gguf"
    size_bytes = whole.stat().st_size
    assert fetch_beginning(url_of(hub), target, size_bytes=size_bytes, token=None)
    assert describe_checkpoint(target).tensors == describe_checkpoint(whole).tensors
    begun = np.fromfile(target, np.uint8)
    assert np.array_equal(begun[-32:].view(np.float32), FACTORS)
    assert not begun[1000:-1000].any()
    assert hub.sent_bytes < 1000


def test_what_has_no_parts_is_left_to_be_fetched_whole(
    hub: FakeHub, whole: Path, tmp_path: Path
) -> None:
    hub.without_ranges = True
    size_bytes = whole.stat().st_size
    target = tmp_path / "beginning.gguf"
    assert not fetch_beginning(url_of(hub), target, size_bytes=size_bytes, token=None)


def test_a_header_without_an_end_is_left_to_be_fetched_whole(
    hub: FakeHub, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_beginning, "BEGINNING_BYTES_MAX", 150)
    size_bytes = whole.stat().st_size
    target = tmp_path / "beginning.gguf"
    assert not fetch_beginning(url_of(hub), target, size_bytes=size_bytes, token=None)


def test_what_is_no_gguf_is_refused(hub: FakeHub, whole: Path, tmp_path: Path) -> None:
    hub.repositories["org/model"]["whole.gguf"] = b"<html>" * 100
    size_bytes = whole.stat().st_size
    with pytest.raises(InvalidCheckpointError, match="does not begin with 'GGUF'"):
        fetch_beginning(url_of(hub), tmp_path / "x.gguf", size_bytes=size_bytes, token=None)
