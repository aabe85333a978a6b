"""sha256 of model files, computed beside other work and remembered by path, size and time of change."""

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import cast

from mezzotint.checkpoints.files import sha256_of
from mezzotint.storage import atomic, cache_folder

_one_at_a_time = threading.Lock()


def start_hash(paths: Sequence[Path]) -> Future[str]:
    """The sha256 of a file, or of the sha256s of shards, from the cache for files that have not changed.

    Runs beside other work (hashing releases the interpreter's lock), one file at a time, and never holds up the end of
    the program.
    """
    future = Future[str]()

    def work() -> None:
        try:
            with _one_at_a_time:
                future.set_result(_hash_all(tuple(paths)))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="mezzotint-hash").start()
    return future


def _hash_all(paths: tuple[Path, ...]) -> str:
    if len(paths) == 1:
        return _hash(paths[0])
    return hashlib.sha256("".join(map(_hash, paths)).encode()).hexdigest()


def _hash(path: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    known = _read()
    if key not in known:
        known = _read() | {key: sha256_of(path)}
        try:
            with atomic(cache_folder() / "sha256.json") as file:
                file.write(json.dumps(known).encode())
        except OSError:
            return known[key]  # a folder that cannot be written costs time, nothing else
    return known[key]


def _read() -> dict[str, str]:
    try:
        found = json.loads((cache_folder() / "sha256.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast(dict[str, str], found) if isinstance(found, dict) else {}
