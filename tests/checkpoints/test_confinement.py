"""The child process cannot use more than its limits nor reach anything but its two open files."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.checkpoints import confinement
from mezzotint.checkpoints.pickles import Refused

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on a process need Linux")


def confined(code: str, *prepare: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process after it was limited and sealed."""
    lines = [
        "from mezzotint.checkpoints import confinement as c",
        *prepare,
        "c.limit(1 << 20)",
        "assert c.seal()",
        code,
    ]
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="no table of system calls")
@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("os.fork()", "os"),
        ("os.open('/etc/passwd', os.O_RDONLY)", "os"),
        ("os.open('canary', os.O_CREAT | os.O_WRONLY)", "os"),
        ("os.execv('/bin/true', ['true'])", "os"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "os"),
        ("os.kill(os.getppid(), 0)", "os"),
        ("os.rename('a', 'b')", "os"),
        ("os.unlink('a')", "os"),
        ("os.mkdir('a')", "os"),
        ("os.symlink('a', 'b')", "os"),
        ("os.chmod('/tmp', 0o777)", "os"),
        ("socket.socket()", "socket"),
        ("socket.socketpair()", "socket"),
    ],
)
def test_sealed_process_cannot_reach_out(code: str, module: str) -> None:
    done = confined(f"try:\n    {code}\nexcept PermissionError as error:\n    print(error.errno)", f"import {module}")
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


@pytest.mark.parametrize(
    ("code", "sign"),
    [
        ("x = bytes(3 << 30)", "MemoryError"),
        ("f.truncate(1 << 40)", "File too large"),
        ("[os.dup(0) for _ in range(99)]", "Too many open files"),
    ],
)
def test_limited_process_cannot_use_more(code: str, sign: str, tmp_path: Path) -> None:
    done = confined(code, "import os", f"f = open({str(tmp_path / 'f')!r}, 'wb')")
    assert done.returncode == 1
    assert sign in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "more than 1024 MB of memory"),
        (RecursionError(), "values inside values"),
        (OSError(28, "No space left on device"), "cannot be written (No space left on device)"),
        (Refused("this", "there"), "this"),
    ],
)
def test_child_says_why_it_stopped(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, str]:
        raise error

    monkeypatch.setattr(confinement, "limit", int)
    monkeypatch.setattr(confinement, "seal", lambda: True)
    monkeypatch.setattr(confinement, "convert", fail)
    path = tmp_path / "file"
    path.write_bytes(b"x")
    code = confinement.main(os.open(path, os.O_RDONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    assert code == confinement.REFUSED
    assert words in json.loads(capsys.readouterr().out)["what"]


def test_machine_without_a_table_relies_on_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not confinement.seal()


def test_reading_a_pickle_needs_no_torch() -> None:
    code = "import sys, mezzotint.checkpoints.confinement; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "mezzotint.checkpoints.archives" in loaded
    assert not {"torch", "numpy", "safetensors"} & set(loaded)
