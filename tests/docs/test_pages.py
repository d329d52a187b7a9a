"""The documents as pages: all of them in the navigation, every link leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import DOCS, DOCUMENTS, FRONT, PAGES, ROOT, links, without_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def test_the_navigation_has_every_page_once() -> None:
    _, _, nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")
    listed = re.findall(r"([\w/.-]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_the_pages_need_no_network() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in configuration
    assert "http" not in configuration


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files_that_exist(path: Path) -> None:
    for target in links(path):
        if target.startswith(("https://", "#")):
            continue
        file = path.parent / target.partition("#")[0]
        assert file.exists(), f"{path.name} links to {target}"
        if path not in FRONT:
            assert file.resolve().is_relative_to(DOCS), f"{path.name} links out of docs/: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_files_that_are_named_exist(path: Path) -> None:
    for name in _names(without_blocks(path)):
        assert list(ROOT.glob(name)), f"{path.name} names {name}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
    outside = re.compile(r"<(?:script|link)[^>]*(?:src|href)=\"https?://", re.IGNORECASE)
    for page in tmp_path.rglob("*.html"):
        fetched = [
            found for found in outside.findall(page.read_text()) if 'rel="canonical"' not in found
        ]
        assert not fetched, f"{page.name} loads from elsewhere: {fetched}"


def _names(text: str) -> Iterator[str]:
    """Yield what looks like a path of the repository, in code."""
    tops = ("benchmarks/", "csrc/", "docs/", "examples/", "src/", "tests/")
    for found in re.finditer(r"`([\w./-]+)`", text):
        if found[1].startswith(tops):
            yield found[1].rstrip("/")
