"""Servers to talk to: the real command with a real model, and the application around an engine that only sleeps."""

import asyncio
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # Any: JSON

import httpx
import pytest
import uvicorn

from cli.conftest import tiny_checkpoint
from mezzotint.checkpoints.save import save_folder
from mezzotint.pipeline.system import System, load
from mezzotint.serve.app import application
from mezzotint.serve.guard import Access, own_hosts
from mezzotint.serve.hub import Hub
from mezzotint.serve.models import Shelf
from mezzotint.serve.run import Prompt
from mezzotint.serve.store import Store
from mezzotint.serve.works import Settings

FAKE = (sys.executable, str(Path(__file__).parent / "fake_engine.py"))
LONGEST_S = 150.0  # a machine may be busy


@pytest.fixture(scope="session")
def shelf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that differ in what they need: model/ and unclip/."""
    folder = tmp_path_factory.mktemp("models")
    save_folder(tiny_checkpoint(), folder / "model")
    save_folder(tiny_checkpoint(is_unclip=True), folder / "unclip")
    return folder


@pytest.fixture(scope="session")
def system(shelf_folder: Path) -> System:
    """A model with the kernels that this processor likes best."""
    return named(load(shelf_folder / "model"))


@pytest.fixture(scope="session")
def plain() -> System:
    """The model that `served` serves, in this process: with the kernels that every machine has."""
    return named(load("icons", kernels="torch"), "icons")


def named(loaded: System, name: str = "model") -> System:
    """The model, called as pictures of the server call it."""
    loaded.place = loaded.place._replace(source=name, name=name)
    return loaded


@dataclass
class Served:
    """A server process that answers."""

    process: subprocess.Popen[str]
    address: str
    gallery: Path
    said: list[str] = field(default_factory=list[str])
    listener: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.Client:  # Any: httpx's options
        """A client with this server as its base."""
        return httpx.Client(base_url=self.address, timeout=LONGEST_S, **options)

    def ready(self) -> None:
        """Wait until a model is loaded."""
        with self.client() as client:
            until_true(lambda: client.get("/readyz").status_code == 200, "the server is ready")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(LONGEST_S)
        if self.listener is not None:
            self.listener.join(LONGEST_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def until_true(holds: Callable[[], object], what: str, longest: float = LONGEST_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + longest
    while not holds():
        assert time.monotonic() < deadline, f"it never came about that {what}"
        time.sleep(0.02)


def recorded(gate: str, found: Mapping[str, object]) -> None:
    """Write down what a long form has found: into serving_gates.json of the folder that MEZZOTINT_RESULTS names."""
    print(gate, found)
    if folder := os.environ.get("MEZZOTINT_RESULTS"):
        path = Path(folder) / "serving_gates.json"
        gates: dict[str, object] = json.loads(path.read_text())["gates"] if path.exists() else {}
        told = {"gates": dict(sorted({**gates, gate: found}.items())), "platform": platform.platform()}
        path.write_text(json.dumps({"what": "pytest -m slow tests/serve", **told}, indent=2) + "\n")


def start(folder: Path, gallery: Path, *more: str, model: str | None = None, kernels: str = "torch") -> Served:
    """`mezzotint serve` on a free port, with the small model of the folder unless another is named."""
    named = model or str(folder / "model")
    command = [sys.executable, "-m", "mezzotint.cli.main", "serve", "-m", named, "--port", "0"]
    return started([*command, "--models", str(folder), "--gallery", str(gallery), *more], gallery, kernels)


ASLEEP = """
from pathlib import Path
from mezzotint.pipeline.source import Source
from mezzotint.serve.run import Place, serve
from mezzotint.serve.works import Settings
settings = Settings(source=Source(model={model!r}), engine={engine!r}, queue=1000)
place = Place(port=0, gallery=Path({gallery!r}), settings=settings)
serve(place, lambda line: print(line, flush=True))
"""


def start_asleep(folder: Path, gallery: Path) -> Served:
    """The same server around the engine that only sleeps: it begins in no time."""
    code = ASLEEP.format(gallery=str(gallery), engine=FAKE, model=str(folder / "model"))
    return started([sys.executable, "-c", code], gallery)


def started(command: list[str], gallery: Path, kernels: str = "torch") -> Served:
    """The server that this command starts, once it says where it listens."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MEZZOTINT_KERNELS": kernels,
            "MEZZOTINT_CACHE": str(gallery.parent / "cache"),
        },
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    found = re.search(r"http://[\d.]+:\d+", first)
    if not found:
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)  # it may still say why
        process.kill()
        pytest.fail(first + process.communicate()[0])
    served = Served(process, found[0], gallery)
    stream = process.stdout

    def listen() -> None:
        served.said.extend(stream)

    served.listener = threading.Thread(target=listen, daemon=True)
    served.listener.start()
    return served


@pytest.fixture(scope="session")
def served(shelf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real server with the packaged model, for every test that does not end it."""
    served = start(shelf_folder, tmp_path_factory.mktemp("served") / "gallery", model="icons")
    try:
        served.ready()
        yield served
    finally:
        served.stop(signal.SIGKILL)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """A client of the real server."""
    with served.client() as client:
        yield client


@dataclass
class Sleeper:
    """The application around the engine that only sleeps, in a thread of this process."""

    address: str
    hub: Hub
    loop: asyncio.AbstractEventLoop

    def call(self, work: Callable[[], Any]) -> Any:  # Any: whatever it gives
        """Do something in the server's thread."""

        async def inside() -> Any:  # Any: as above
            found = work()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(LONGEST_S)


Sleepers = Callable[..., Sleeper]


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Sleepers]:
    """Start such an application: `sleeper(service=0.05, queue=32)`."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(*, service: float = 0.05, key: str | None = None, **settings: Any) -> Sleeper:  # Any: of Settings
        monkeypatch.setenv("FAKE_SERVICE_S", str(service))
        shelf = tmp_path / "models"
        for name in ("one", "two", "broken", "deadly"):
            (shelf / name).mkdir(parents=True, exist_ok=True)
            (shelf / name / "model_index.json").write_text("{}")
        store = Store(tmp_path / "gallery")
        hub = Hub(store, Shelf(str(shelf / "one"), shelf), replace(Settings(engine=FAKE), **settings))
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = application(hub, Access(key=key, hosts=own_hosts("127.0.0.1", port), port=port))
        server = uvicorn.Server(
            uvicorn.Config(
                app, http=Prompt, ws="none", log_level="error", access_log=False, timeout_graceful_shutdown=1
            )
        )
        loops: list[asyncio.AbstractEventLoop] = []

        def run() -> None:
            async def work() -> None:
                loops.append(asyncio.get_running_loop())
                await server.serve(sockets=[listening])

            asyncio.run(work())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        running.append((server, thread))
        until_true(lambda: hub.state == "ready", "the fake engine is ready")
        return Sleeper(f"http://127.0.0.1:{port}", hub, loops[0])

    yield begin
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def events(client: httpx.Client, job: str, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:  # Any: JSON
    """All events of a job to its end."""
    found: list[tuple[int, str, dict[str, Any]]] = []  # Any: JSON
    number, kind = 0, ""
    with client.stream("GET", f"/api/v1/jobs/{job}/events", headers=headers) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = int(value)
            elif name == "event":
                kind = value
            elif name == "data":
                found.append((number, kind, json.loads(value)))
    return found


def made(client: httpx.Client, **request: Any) -> dict[str, Any]:  # Any: JSON
    """The job object of a request that has been carried out."""
    answer = client.post("/api/v1/jobs", json={"request": request})
    assert answer.status_code == 202, answer.text
    return finished(client, answer.json()["id"])


def finished(client: httpx.Client, job: str) -> dict[str, Any]:  # Any: JSON
    """The job object once it has ended."""
    told: dict[str, Any] = {}  # Any: JSON

    def has_ended() -> bool:
        told.update(client.get(f"/api/v1/jobs/{job}").json())
        return told["state"] in {"done", "failed", "cancelled"}

    until_true(has_ended, "the job ends")
    return told


@pytest.fixture(scope="session")
def golden() -> Path:
    """Files that other programs made."""
    return Path(__file__).parent.parent / "golden"
