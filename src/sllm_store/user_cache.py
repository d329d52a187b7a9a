"""What a user's processes remember for later ones: small files under the user's cache directory.

A file there is a hint: whoever reads it takes a damaged one for none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def user_cache(environ: Mapping[str, str]) -> Path:
    """Return the directory that belongs to this package; it need not be there."""
    configured = environ.get("XDG_CACHE_HOME")
    cache = Path(configured) if configured else home_directory(environ) / ".cache"
    return cache / "serverless-llm"


def home_directory(environ: Mapping[str, str]) -> Path:
    """Return HOME, else what the system has as this user's home, else the root directory."""
    if "HOME" in environ:
        return Path(environ["HOME"] or "/")
    try:
        return Path.home()
    except RuntimeError:  # A user without a name, in a container say.
        return Path("/")


def keep_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all, and the directory that it is in. Raises OSError."""
    keep_bytes(path, text.encode())


def keep_bytes(path: Path, content: bytes) -> None:
    """As keep_text, for what is not text."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".kept-", delete=False) as file:
        written = Path(file.name)
        try:
            file.write(content)
            file.close()
            written.replace(path)
        except OSError:
            written.unlink(missing_ok=True)
            raise
