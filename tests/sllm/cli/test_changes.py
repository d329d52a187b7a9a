"""Models are removed, copied and made by commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

MODELFILE = """FROM ./tiny.gguf
PARAMETER temperature 0.5
PARAMETER stop "###"
SYSTEM Be brief.
"""


def test_nothing_is_removed_without_a_yes(run: Callable[..., Result], tiny: Path) -> None:
    run("pull", str(tiny))
    assert "pass --yes" in run("rm", "tiny", code=1).stderr
    assert run("rm", "tiny", "--yes").stdout == "removed tiny\n"
    assert tiny.is_file()
    assert "no model 'tiny'" in run("rm", "tiny", "-y", code=1).stderr


def test_a_modelfile_makes_a_model(run: Callable[..., Result], tiny: Path, home: Path) -> None:
    (home / "Modelfile").write_text(MODELFILE)
    assert "created mine:latest" in run("create", "mine").stderr
    assert run("show", "mine", "--parameters").stdout.splitlines() == [
        "temperature 0.5",
        'stop "###"',
    ]
    (home / "deeper").mkdir()
    (home / "deeper" / "other").write_text("FROM ../tiny.gguf\nSYSTEM Hi")
    run("create", "other", "-f", "deeper/other", "--system", "Ho", "-q")
    assert run("show", "other", "--system").stdout == "Ho\n"
    (home / "third").write_text("FROM mine\nPARAMETER temperature 1")
    run("create", "third", "-f", "third")
    assert "temperature 1.0" in run("show", "third", "--parameters").stdout
    assert run("show", "third", "--system").stdout == "Be brief.\n"


def test_what_show_writes_makes_the_model_again(
    run: Callable[..., Result], tiny: Path, home: Path
) -> None:
    (home / "Modelfile").write_text(MODELFILE)
    run("create", "mine")
    (home / "again").write_text(run("show", "mine", "--modelfile").stdout)
    run("create", "again", "-f", "again")
    for part in ("--parameters", "--system", "--template"):
        assert run("show", "again", part).stdout == run("show", "mine", part).stdout


def test_a_modelfile_that_is_wrong_is_one_red_line(run: Callable[..., Result], home: Path) -> None:
    assert "there is no Modelfile here" in run("create", "mine", code=1).stderr
    (home / "Modelfile").write_bytes(b"GGUF\xff")
    assert "is not text" in run("create", "mine", code=1).stderr
    (home / "Modelfile").write_text("FROM x\nADAPTER y")
    assert "error: line 2 of the Modelfile: ADAPTER" in run("create", "mine", code=1).stderr
    for line, told in (
        ("PARAMETER temperature -1", "temperature is -1.0, not between"),
        ("PARAMETER mirostat 2", "unknown parameter 'mirostat'"),
        ("TEMPLATE {{ if .System }}", "the chat template is one of Go's"),
        ("TEMPLATE {%", "the chat template is not a Jinja template"),
    ):
        (home / "Modelfile").write_text(f"FROM x\n{line}")
        assert told in run("create", "mine", code=1).stderr
