"""Files that appear whole or not at all, and where this package keeps what it can make again. No torch."""

import contextlib
import os
import secrets
from collections.abc import Generator
from importlib import resources
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic(path: str | Path) -> Generator[BinaryIO]:
    """A binary file that appears under `path`, complete and on disk, when the block ends; on an error nothing appears.

    Raises: OSError if the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def sweep(folder: Path) -> None:
    """Remove what writers that were killed had begun, there and below. Nobody may be writing there meanwhile."""
    for draft in folder.rglob(".*.tmp"):
        draft.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this package keeps what it can make again: MEZZOTINT_CACHE, else the user's cache folder."""
    if own := os.environ.get("MEZZOTINT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mezzotint"


def asset(name: str) -> Path:
    """Where a file or folder that travels in this package is, whether or not this installation has it."""
    return Path(str(resources.files("mezzotint"))) / "assets" / name


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; systems without folder handles do so by themselves."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
