"""What the tests of the compiled kernels share: one library, built once for all of them."""

import fcntl
import shutil
from collections.abc import Generator

import pytest

from mezzotint.kernels import native


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """The compiled operations, in a cache of the tests' own; other tests do without them."""
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
        yield
    native.instructions.cache_clear()
