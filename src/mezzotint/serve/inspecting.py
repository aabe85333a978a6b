"""What a model is, found out by `mezzotint inspect` in a process of its own: looking into weights needs torch."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any  # Any: JSON

from starlette.exceptions import HTTPException

LONGEST_S = 120.0


class Inspector:
    """One inspection at a time; what was found is remembered until the model changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, Any]] = {}  # Any: JSON
        self._turn = asyncio.Lock()

    async def __call__(self, path: str) -> dict[str, Any]:  # Any: JSON
        """The detection of a model as data, without its path. Raises: HTTPException if it is none."""
        place = Path(path)
        key = path, place.stat().st_mtime_ns if place.exists() else 0
        async with self._turn:
            if key not in self._known:
                self._known[key] = await _asked(path)
            return self._known[key]


async def _asked(path: str) -> dict[str, Any]:  # Any: JSON
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mezzotint.cli.main", "inspect", path, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LONGEST_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise HTTPException(422, "the model cannot be inspected in time") from None
    with suppress(ValueError):
        told: dict[str, Any] = json.loads(out)  # Any: JSON
        told.pop("path", None)
        return told
    raise HTTPException(422, "the model cannot be inspected; `mezzotint inspect` says why")
