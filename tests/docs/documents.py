"""The documents, taken apart: fenced blocks, tables, inline code, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FRONT = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
PAGES = tuple(sorted(DOCS.rglob("*.md")))
DOCUMENTS = (*FRONT, *PAGES)

_FENCE = re.compile(r"```(\w*)[^\n]*\n(.*?)```", re.DOTALL)
_CODE = re.compile(r"(?<!`)(`+) ?(.+?) ?\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the language after its fence, its text, and where it begins."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """Return the place, for messages."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a block of shell; in 'console' they follow a '$ '."""
        if self.language == "sh":
            return [line for line in self.text.splitlines() if line.strip()]
        if self.language == "console":
            return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return []


def read_blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in _FENCE.finditer(text)
    ]


def without_blocks(path: Path) -> str:
    """Return a document's text without its fenced blocks."""
    return _FENCE.sub("", path.read_text())


def inline_code(path: Path) -> list[str]:
    """Return what a document writes as code within its sentences."""
    return [found[2].strip() for found in _CODE.finditer(without_blocks(path))]


def links(path: Path) -> list[str]:
    """Return the targets of a document's links."""
    return _LINK.findall(without_blocks(path))


def table_rows(path: Path, heading: str) -> list[list[str]]:
    """Return the cells of every table below a heading, up to the next of its level or above."""
    lines = path.read_text().splitlines()
    start = lines.index(heading)
    level = len(heading) - len(heading.lstrip("#"))
    rows = []
    for line in lines[start + 1 :]:
        found = re.match(r"(#+) ", line)
        if found and len(found[1]) <= level:
            break
        if line.startswith("| ") and not line.startswith("| ---"):
            rows.append(re.split(r"\s*\|\s*", line.strip())[1:-1])
    assert rows, f"no table below {heading!r} in {path.name}"
    return rows


def code_cell(cell: str) -> str:
    """Return the code of a cell that is nothing else."""
    found = _CODE.fullmatch(cell)
    assert found is not None, f"{cell!r} is not written as code"
    return found[2].strip()
