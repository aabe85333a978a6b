"""Shared by every test: one thread, no network, seeded generators."""

import fcntl
import os
import shutil
import socket
from collections.abc import Generator
from importlib import resources
from pathlib import Path

import pytest
import torch

from mezzotint.kernels import native

torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MEZZOTINT_KERNELS"] = "packed"  # what needs no compiler; nothing is timed in a test


@pytest.fixture(autouse=True)
def _closed_network(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Refuse every connection but loopback: a test that reaches the network is wrong."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX or (isinstance(address, tuple) and address[0] in {"127.0.0.1", "::1"}):
            return connect(self, address)  # pyright: ignore[reportArgumentType]
        raise AssertionError(f"a test opened a connection to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator("cpu").manual_seed(0)


@pytest.fixture
def trained_folder() -> Path:
    """A small trained Stable Diffusion checkpoint as a diffusers folder: the packaged model, or MEZZOTINT_ICONS."""
    packaged = Path(str(resources.files("mezzotint"))) / "assets" / "icons"
    return Path(os.environ.get("MEZZOTINT_ICONS", packaged))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """The compiled operations, built once, in a cache of the tests' own; other tests do without them."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler: the compiled kernels are not tested, their fallback is")
    folder = tmp_path_factory.getbasetemp().parent / "compiled"  # one for all workers
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEZZOTINT_CACHE", str(folder))
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            native.build()
        native.instructions.cache_clear()
        assert native.available()
        yield
    native.instructions.cache_clear()


SKIPS = Path(__file__).parent / "skips.txt"
_refused: list[str] = []


def may_skip(reason: str) -> bool:
    """Whether tests/skips.txt lists a skip for this reason."""
    listed = [line.split("|")[0].strip() for line in SKIPS.read_text().splitlines() if line and line[0] != "#"]
    return any(word in reason for word in listed)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember each skip whose reason is not listed."""
    if report.skipped and not hasattr(report, "wasxfail") and not may_skip(str(report.longrepr)):
        _refused.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped something without a listed reason."""
    if _refused and not hasattr(session.config, "workerinput"):
        print(f"\nskipped without a reason in tests/skips.txt: {', '.join(_refused)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
