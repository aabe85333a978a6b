"""The server as a process: listens, drains on the first signal, closes connections that say nothing. No torch."""

import asyncio
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any  # Any: what uvicorn passes around

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mezzotint.errors import RequestError
from mezzotint.serve.app import application
from mezzotint.serve.guard import Access, is_loopback, own_hosts
from mezzotint.serve.hub import Hub
from mezzotint.serve.models import Shelf
from mezzotint.serve.store import Store
from mezzotint.serve.works import Settings

HEADERS_S = 10.0  # for the headers of a first request
CONNECTIONS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the server listens, and what it works with."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    grace: float = 30.0
    gallery: Path = Path("outputs/gallery")
    models: Path | None = None
    settings: Settings = field(default_factory=Settings)


class Prompt(H11Protocol):
    """HTTP/1.1 for clients that say what they want: a connection whose headers do not come is closed."""

    def connection_made(self, transport: Any) -> None:  # Any: as uvicorn declares it
        """A client has connected."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEADERS_S, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._patience.cancel()
        super().connection_lost(exc)

    def _lose_patience(self) -> None:
        if self.cycle is None:  # pyright: ignore[reportUnnecessaryComparison]  # None until a request has begun
            self.transport.close()


class Server(uvicorn.Server):
    """Drains on the first SIGTERM or SIGINT: takes no more jobs, ends those that it has; a second one stops at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Any]) -> None:  # Any: a coroutine
        super().__init__(config)
        self._drain, self._draining = drain, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self._draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._draining = True
        asyncio.get_running_loop().create_task(self._drained(), name="drain")

    async def _drained(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True


def serve(place: Place, said: Callable[[str], None]) -> None:
    """Serve until a signal comes; `said` is told the addresses.

    Raises: RequestError if the address is open to others and there is no key, or cannot be listened on;
    CheckpointError if there is no such model.
    """
    if not is_loopback(place.host) and not place.key:
        raise RequestError(
            f"{place.host} can be reached from other machines: give a key with --key (or MEZZOTINT_KEY), "
            "or listen on 127.0.0.1"
        )
    shelf = Shelf(place.settings.source.model, place.models)
    listening = _listening(place.host, place.port)  # before the gallery is opened: nothing of it changes if it cannot
    hub = Hub(Store(place.gallery), shelf, place.settings)
    port = listening.getsockname()[1]
    access = Access(
        key=place.key,
        hosts=own_hosts(place.host, port, place.allowed_hosts),
        port=port,
        is_public=not is_loopback(place.host),
    )
    app = application(hub, access, is_drained_elsewhere=True)
    config = uvicorn.Config(
        app,
        http=Prompt,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=bool(place.allowed_hosts),  # then a proxy on this machine says who asks, and how
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=1 << 16,
    )
    host = f"[{place.host}]" if ":" in place.host else place.host
    address = f"http://{'127.0.0.1' if place.host in ('0.0.0.0', '::') else host}:{port}"
    for line in (
        f"page        {address}/",
        f"OpenAI      {address}/v1",
        f"A1111       {address}/sdapi/v1",
        f"HF          {address}/hf/text-to-image",
        f"native      {address}/api/v1    docs/reference/http.md",
    ):
        said(line)

    async def run() -> None:
        telling = asyncio.create_task(_tell(hub, said), name="tell")
        await Server(config, lambda: hub.drain(place.grace)).serve(sockets=[listening])
        telling.cancel()

    asyncio.run(run())


async def _tell(hub: Hub, said: Callable[[str], None]) -> None:
    """Say at the terminal whenever the server's state changes."""
    before = "loading"
    async for now in hub.news():
        if now is None or now["state"] == before:
            continue
        before, model, queue = now["state"], now["model"], now["queue"]
        words = now["detail"]
        if before == "ready" and model is not None:
            words = f"{model['name']}: {model['title']}, {model['dtype']} on {model['device']}"
        elif before == "draining":
            words = f"{queue['running'] + queue['waiting']} jobs are finished first; a second signal ends them"
        said(f"{before:11} {words}".rstrip())


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens here. Raises: RequestError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(CONNECTIONS)  # before anybody reads the address; they wait until the server takes them
    except OSError as error:
        listening.close()
        raise RequestError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; --port 0 takes a port that is free"
        ) from None
    return listening
