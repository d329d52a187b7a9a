"""Settings come from the environment, the nearest .env, and a person's own file, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sllm.cli.environment import VARIABLES, read_files

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from click.testing import Result

ROOT = Path(__file__).parents[3]


def test_the_nearest_says_it(tmp_path: Path) -> None:
    (tmp_path / "config" / "gdsllm").mkdir(parents=True)
    (tmp_path / "config" / "gdsllm" / ".env").write_text("HF_TOKEN=far\nGDSLLM_HF_CACHE=far\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / ".env").write_text(
        "GDSLLM_API_TOKEN='near'\nGDSLLM_HF_CACHE=near\nPATH=/evil\nOLLAMA_HOST\n"
    )
    (tmp_path / ".env").write_text("LLM_SERVER_URL=not read\n")
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "GDSLLM_API_TOKEN": "given"}
    read_files(environment, tmp_path / "a" / "b")
    del environment["XDG_CONFIG_HOME"]
    assert environment == {
        "GDSLLM_API_TOKEN": "given",
        "GDSLLM_HF_CACHE": "near",
        "HF_TOKEN": "far",
    }


def test_commands_read_the_files(
    run: Callable[..., Result], home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDSLLM_MODEL_ROOT", "here to be put back")
    monkeypatch.delenv("GDSLLM_MODEL_ROOT")
    (home / ".env").write_text(f"GDSLLM_MODEL_ROOT={home / 'elsewhere'}\n")
    run("pull", str(tiny))
    assert (home / "elsewhere" / "manifests").is_dir()


def test_a_file_that_is_no_text_is_named(run: Callable[..., Result], home: Path) -> None:
    (home / ".env").write_bytes(b"\xff\xfe\x00")
    assert f"{home / '.env'} is not text" in run("list", code=1).stderr


def test_a_line_that_says_nothing_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=mine\nif broken then\n")
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    read_files(environment, tmp_path)
    assert environment["HF_TOKEN"] == "mine"
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path / '.env'}: ")
    assert told.endswith("line 2")


def test_the_example_has_all_that_is_read() -> None:
    second_names = {"HF_TOKEN", "OLLAMA_HOST"}
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = {line[1:].partition("=")[0] for line in lines if line[:1] == "#" and line[1:2] != " "}
    assert named == set(VARIABLES) - second_names
