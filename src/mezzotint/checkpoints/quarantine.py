"""Pickle formats (.ckpt, .pt, .bin) become safetensors in a closed child process; nothing else ever reads them.

A pickle is a program. It is not run: `pickles` walks its instructions and knows tensors only, `archives` copies their
bytes, `confinement` bounds the process that does so. The result lies in the cache under the SHA-256 of the input: a
file is converted once; it is checked as any other safetensors file before it counts.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mezzotint
from mezzotint.checkpoints.detection import refusal
from mezzotint.checkpoints.files import atomic, read_header, sha256_of
from mezzotint.errors import CheckpointError
from mezzotint.storage import cache_folder

SUFFIXES = {".ckpt", ".pt", ".pth", ".th", ".bin"}
WAIT_S = 120  # and one second more for every 4 MB: a slow disk is not an attack

# The child has the standard library and, behind it, this package: -S leaves out everything else that is installed.
_START = """
import sys
sys.path.append(sys.argv[1])
from mezzotint.checkpoints.confinement import main
sys.exit(main(int(sys.argv[2]), int(sys.argv[3])))
"""


def is_pickle(path: str | Path) -> bool:
    """Whether a file goes through `to_safetensors`: by its name, unless it is a safetensors file under a wrong one.

    The reverse, a pickle named .safetensors, is refused by whoever reads it: that name is a promise.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] != b"{"
    except OSError:  # whoever reads it next says why
        return True


def to_safetensors(path: str | Path) -> Path:
    """The safetensors form of a .ckpt, .pt or .bin file of PyTorch: converted at the first call, then from the cache.

    Its metadata holds `global_step` if the file had one and `left_out`, a list of what is not a tensor of the model.
    Raises: CheckpointError in three lines if the file is missing, damaged, asks for code, claims what its bytes cannot
    hold, or if this system cannot limit a process.
    """
    path = Path(path)
    if not sys.platform.startswith("linux"):
        raise refusal(
            f"{path.name} is a pickle file: reading it needs limits on a process that only Linux has",
            str(path),
            f"on Linux (or WSL, or a container): mezzotint convert {path.name} {path.stem}.safetensors",
        )
    result = cache_folder() / "quarantine-1" / f"{sha256_of(path)}.safetensors"
    if result.is_file():
        return result
    with path.open("rb") as source, atomic(result) as target:
        _convert(path, source.fileno(), target.fileno())
        read_header(Path(target.name))
    return result


def _convert(path: Path, source: int, target: int) -> None:
    """Run the child on two open files. Raises: CheckpointError with its reason."""
    root = Path(mezzotint.__file__).parent.parent
    wait = WAIT_S + os.fstat(source).st_size // (4 << 20)
    with (
        tempfile.TemporaryDirectory(prefix="mezzotint-") as empty,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _START, str(root), str(source), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(source, target),
            cwd=empty,
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},  # for Python itself
            start_new_session=True,
        ) as child,
    ):
        try:
            answer, _ = child.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            raise _refused(path, f"reading it took more than {wait} s", "") from None
        finally:
            child.kill()
    if child.returncode != 0:
        raise _refused(path, *_reason(child.returncode, answer))


def _reason(code: int, answer: bytes) -> tuple[str, str]:
    """What the child found and where, or how it ended."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(answer)
        return said["what"], said["where"]
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"reading it broke a limit ({cause})", ""


def _refused(path: Path, what: str, where: str) -> CheckpointError:
    return refusal(
        f"{path.name} is refused: {what}",
        f"{path}" + (f": {where}" if where else ""),
        "download it again; if that does not help, look for a .safetensors version and open this file nowhere else",
    )
