"""Run examples in one interpreter, each with a namespace of its own: code in, verdict out.

Reads one JSON string a line from stdin; answers each with a line that has an empty string, or the
traceback, as JSON. What the examples print goes to stderr.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import traceback


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        failure = ""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                exec(compile(json.loads(line), "<example>", "exec"), {"__name__": "__main__"})
            except BaseException:  # noqa: BLE001 - it is the answer.
                failure = traceback.format_exc()
        gc.collect()
        print(json.dumps(failure), flush=True)


if __name__ == "__main__":
    main()
