"""Change a library in a process that dies at its n-th touch of the file system, for every n.

`python -m tests.sllm.library.crash_cases DIRECTORY CHANGE CHECKPOINT` leaves a library DIRECTORY/n
for each n; the last change came to its end. Touches are CPython's audit events, so that nothing of
the library knows of this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sllm.library.models import Library
from sllm.library.origins import Origins
from sllm.library.package_index import sha256_of
from sllm.library.smollm2 import PackagedModel

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
DIED = 9


def main() -> None:
    """Do as the arguments say."""
    directory, change, checkpoint = sys.argv[1:]
    for touches in range(200):
        root = Path(directory, str(touches))
        library = Library(root, origins=_origins(Path(checkpoint)))
        library.create("kept", source=Path(checkpoint), system="first")
        if change == "free":
            library.pull("smollm2")
        child = os.fork()
        if child == 0:
            _change(library, change, touches)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        assert code == DIED, f"{change} failed at {touches} with {code}"
    sys.exit("the change never came to its end")


def _origins(checkpoint: Path) -> Origins:
    packaged = PackagedModel(
        requirement="none==0",
        wheel_sha256="0",
        member=checkpoint.name,
        size_bytes=checkpoint.stat().st_size,
        sha256=sha256_of(checkpoint),
    )
    return Origins(cache=checkpoint.parent, packaged=packaged)


def _change(library: Library, change: str, touches: int) -> None:
    left = touches

    def die(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and str(arguments[0]).startswith(str(library.root)):
            left -= 1
            if left < 0:
                os._exit(DIED)

    sys.addaudithook(die)
    if change == "pull":
        library.pull("smollm2")
    elif change == "copy":
        library.copy("kept", "new")
    elif change == "replace":
        library.create("kept", source="kept", system="other")
    else:
        library.remove("smollm2" if change == "free" else "kept")


if __name__ == "__main__":
    main()
