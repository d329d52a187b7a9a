"""The quickstart answers, leaves nothing running, and leaves nothing half-written."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from rich.console import Console

from examples import quickstart
from examples.quickstart import (
    CHAT_MODEL,
    MODEL,
    QUESTION,
    QuickstartError,
    copy_as_safetensors,
    import_model,
    run,
    running_store,
)
from sllm.library.models import Library
from sllm.library.origins import Origins
from sllm_store.checkpoint.reader import open_checkpoint
from sllm_store.client import SllmStoreClient, is_running
from sllm_store.torch import load_dict, save_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CASE = """
import sys
from pathlib import Path
from examples import quickstart
quickstart.fetch = lambda cache: Path(sys.argv.pop())
quickstart.main()
"""
CHAT = """
import os
import sys
from pathlib import Path
from rich.console import Console
from examples import quickstart
quickstart.chat(sys.argv[2] or None, Path(sys.argv[1]), dict(os.environ), Console())
"""


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def test_a_model_is_imported_once_as_float32(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny"
    first = import_model(published, target, quiet())
    assert {tensor.dtype for tensor in first.tensors.values()} == {"float32"}
    assert (target / "chat_template.jinja").is_file()
    assert import_model(published, target, quiet()).version == first.version


def test_a_broken_import_is_made_again(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny"
    import_model(published, target, quiet())
    (target / "tensor_index.json").write_text("{")
    assert import_model(published, target, quiet()).tensors


def test_the_copy_is_made_once_for_each_state_of_the_checkpoint(tmp_path: Path) -> None:
    model, copy = tmp_path / "model", tmp_path / "model.safetensors"
    for value in (1.0, 2.0):
        save_dict({"w": torch.full((4,), value)}, model)
        checkpoint = open_checkpoint(model)
        assert copy_as_safetensors(checkpoint, copy) == copy
        made = copy.stat().st_ino
        assert safetensors.torch.load_file(copy)["w"].tolist() == [value] * 4
        copy_as_safetensors(checkpoint, copy)
        assert copy.stat().st_ino == made


def test_a_copy_that_was_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dict({"w": torch.zeros(4)}, tmp_path / "model")

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    (tmp_path / "copies").mkdir()
    with pytest.raises(KeyboardInterrupt):
        copy_as_safetensors(open_checkpoint(tmp_path / "model"), tmp_path / "copies" / "copy")
    assert not list((tmp_path / "copies").iterdir())


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, RuntimeError])
def test_the_store_ends_with_its_user_however_that_ends(
    tmp_path: Path, ending: type[BaseException] | None
) -> None:
    def use() -> tuple[str, int]:
        with running_store(tmp_path, 128 << 20) as address:
            with SllmStoreClient(address) as client:
                found.append((address, client.status().pid))
            if ending is not None:
                raise ending
        return found[0]

    found: list[tuple[str, int]] = []
    if ending is None:
        use()
    else:
        with pytest.raises(ending):
            use()
    address, pid = found[0]
    assert not is_running(address)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(address.removeprefix("unix:")).parent.exists()


def test_a_store_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    with (
        pytest.raises(QuickstartError, match=r"the store ended; its log:(.|\n)*pool"),
        running_store(tmp_path, 1),
    ):
        pytest.fail("a pool of one byte cannot be ready")


def test_a_store_that_is_never_ready_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "READY_TIMEOUT_S", 0.0)
    with (
        pytest.raises(QuickstartError, match="not ready after 0 s"),
        running_store(tmp_path, 128 << 20),
    ):
        pytest.fail("nothing is ready after no time at all")


def test_a_question_is_answered_and_the_times_are_shown(published: Path, tmp_path: Path) -> None:
    console = quiet()
    run(published, tmp_path / "cache", "why is it so ?", console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "loaded SmolLM2-135M-Instruct through it" in text
    assert "why is it so ?" in text
    assert text.count(" yes") == 4
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {"models", f"{MODEL}.safetensors"}
    expected = load_dict(tmp_path / "cache" / "models" / MODEL, "cpu", store="in-process")
    copied = safetensors.torch.load_file(tmp_path / "cache" / f"{MODEL}.safetensors")
    assert all(torch.equal(copied[name], tensor) for name, tensor in expected.items())


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for a socket, whose path is of 107 bytes at most: pytest's own may be longer."""
    with tempfile.TemporaryDirectory(prefix="sllm-") as directory:
        yield Path(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_store_too(
    published: Path, tmp_path: Path, temporary: Path, number: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-c", CASE, "--cache", str(tmp_path / "cache"), str(published)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = ""
        while not address and (line := process.stdout.readline()):
            address = line.partition("the store is ready at ")[2].strip()
        assert is_running(address)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not is_running(address)
    assert not list(temporary.glob("sllm-quickstart-*"))


def test_a_question_is_answered_by_gdsllm_too(smollm2: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHAT, str(smollm2.parent), QUESTION],
        cwd=ROOT,
        env=_home(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "gdsllm run smollm2:135m" in done.stdout
    assert done.stdout.endswith("The capital of France is Paris.\n")
    assert [model.name for model in Library(tmp_path / "models").list()] == [CHAT_MODEL]


def test_on_a_terminal_there_is_a_chat_until_bye(smollm2: Path, tmp_path: Path) -> None:
    """With a model that an earlier run has taken in, which stays as it is."""
    library = Library(tmp_path / "models", origins=Origins(cache=smollm2.parent))
    before = library.pull(CHAT_MODEL, lambda progress: None)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CHAT, str(smollm2.parent), ""],
        cwd=ROOT,
        env=_home(tmp_path),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            _read(ours, until=">>>")
            os.write(ours, b"/set parameter temperature 0\r" + QUESTION.encode() + b"\r/bye\r")
            assert "The capital of France is Paris." in _read(ours)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(ours)
    assert library.list() == [before]


def _home(path: Path) -> dict[str, str]:
    """Return the environment of somebody who has nothing yet, and no network."""
    own = {"HOME": str(path), "GDSLLM_MODEL_ROOT": str(path / "models"), "TERM": "xterm"}
    own |= {f"XDG_{name}_HOME": str(path / name) for name in ("CACHE", "CONFIG", "DATA", "STATE")}
    own |= {"PIP_NO_INDEX": "1", "PROMPT_TOOLKIT_NO_CPR": "1"}
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    return {**kept, **own}


def _read(terminal: int, *, until: str | None = None) -> str:
    """Return what a terminal shows up to some text, or until nobody has it open."""
    shown, deadline_s = "", time.monotonic() + 60
    while until is None or until not in shown:
        assert select.select([terminal], [], [], max(0.0, deadline_s - time.monotonic()))[0], shown
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # EIO: everybody has closed it.
            assert until is None, shown
            break
    return shown
