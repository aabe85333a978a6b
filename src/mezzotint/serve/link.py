"""The engine process as the server sees it: started, told, listened to, and started again when it dies.

Nothing here imports torch, and nothing waits for the engine but `tell`, and that only for the pipe.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mezzotint.serve.wire import MAX_LINE, Frame, opened, packed

ENGINE = (sys.executable, "-m", "mezzotint.serve.engine")
ENVIRONMENT = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",  # it grows with every new size otherwise
    "MALLOC_ARENA_MAX": "2",
}
RESTART_S = (0.0, 0.5, 2.0, 5.0, 15.0)  # before each start after a death; the last one for ever
STEADY_S = 60.0  # an engine that lived so long is started again at once

log = logging.getLogger(__name__)


@dataclass
class Link:
    """One engine at a time. `heard` is called with every message, `died` after every death and before the restart."""

    heard: Callable[[Frame], Awaitable[None]]
    began: Callable[[], Awaitable[None]]
    died: Callable[[], Awaitable[None]]
    command: Sequence[str] = ENGINE
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)
    _keeper: asyncio.Task[None] | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """Of the engine that runs now."""
        return None if self._process is None else self._process.pid

    def open(self) -> None:
        """Start the engine, and start it again whenever it dies."""
        self._keeper = asyncio.create_task(self._keep(), name="engine")

    async def tell(self, head: Mapping[str, object], *parts: bytes) -> None:
        """Send a command; one that is sent to an engine that is dying is lost, as the engine's jobs are."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(packed(head, *parts))
            await self._process.stdin.drain()

    def kill(self) -> None:
        """End an engine that does not answer; it is started again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the engine for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _keep(self) -> None:
        loop, deaths = asyncio.get_running_loop(), 0
        while True:
            started = loop.time()
            try:
                code = await self._live()
                log.error("the engine has ended with code %d; it is started again", code)
            except Exception:  # whatever it was, somebody has to go on looking after the engine
                log.exception("the engine could not be looked after; it is started again")
            deaths = 1 if loop.time() - started > STEADY_S else deaths + 1
            try:
                await self.died()
            except Exception:
                log.exception("the end of the engine could not be dealt with")
            await asyncio.sleep(RESTART_S[min(deaths, len(RESTART_S)) - 1])

    async def _live(self) -> int:
        """One engine, from its start to its end; its exit code."""
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE,
            env={**os.environ, **ENVIRONMENT, **self.environment},
            start_new_session=os.name == "posix",  # Ctrl-C is for the server, which ends its engine in order
        )
        process = self._process
        try:
            await self.began()
            await self._listen(process)
        finally:
            if self._process is process and process.returncode is None and not self._is_closing():
                process.kill()
        return await process.wait()

    def _is_closing(self) -> bool:
        return self._keeper is not None and self._keeper.cancelling() > 0

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Hand on every message until the stream ends or makes no sense."""
        assert process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError, ValueError, ConnectionError):
            while line := await process.stdout.readline():
                head, sizes = opened(line)
                parts = [await process.stdout.readexactly(size) for size in sizes]
                await self.heard(Frame(head, tuple(parts)))
