"""Memory, as the system hands it out: mapped weights that were read are given back, memory that was freed is kept.

Only pages that a file can bring back unchanged are touched; the kernel says page by page which those are. A page of
anonymous memory, or one that somebody has written to, stays. Linux only; elsewhere nothing happens.

Source: Linux, Documentation/admin-guide/mm/pagemap.rst (the bits), madvise(2); glibc, mallopt(3).
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import nn

MIN_BYTES = 1 << 18  # below, the call costs more than the memory is worth
PRESENT, SWAPPED, OF_FILE = 1 << 63, 1 << 62, 1 << 61
PAGEMAP = Path("/proc/self/pagemap")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt
KEPT_BYTES = 1 << 30  # allocations up to this size are served from memory that was freed before


def give_back(modules: Iterable[nn.Module]) -> int:
    """Let go of the resident pages of the modules' own parameters where a file can bring them back; bytes let go of."""
    if not sys.platform.startswith("linux"):
        return 0
    dropped = 0
    for module in modules:
        for parameter in module.parameters(recurse=False):
            count = parameter.numel() * parameter.element_size()
            if count >= MIN_BYTES and parameter.is_contiguous() and parameter.device.type == "cpu":
                dropped += _drop(parameter.data_ptr(), count)
    return dropped


def keep_freed() -> None:
    """From now on, memory that this process frees stays with it, for its next allocation. glibc; elsewhere nothing.

    A training step frees and asks for the same gigabytes again and again. By glibc's defaults each large piece goes
    back to the system and comes again as empty pages, one fault each: an eighth of a step of the icon model.
    """
    if sys.platform.startswith("linux") and hasattr(_libc(), "mallopt"):
        _libc().mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
        _libc().mallopt(MMAP_THRESHOLD, KEPT_BYTES)


def give_back_freed() -> None:
    """Give the system back what was freed and lies about in pieces. glibc; elsewhere nothing happens."""
    if sys.platform.startswith("linux") and hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


def _drop(start: int, count: int) -> int:
    """Let go of the whole pages within these bytes, if all of them can be read again."""
    first = -(-start // mmap.PAGESIZE)
    pages = (start + count) // mmap.PAGESIZE - first
    if pages <= 0 or not _can_return(first, pages):
        return 0
    size = pages * mmap.PAGESIZE
    failed = _libc().madvise(ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    return 0 if failed else size


def _can_return(first: int, pages: int) -> bool:
    """Whether every resident page is one of a file, as it is in the file."""
    try:
        with PAGEMAP.open("rb") as file:
            file.seek(first * 8)
            entries = np.frombuffer(file.read(pages * 8), dtype=np.uint64)
    except OSError:
        return False
    if len(entries) != pages or bool((entries & np.uint64(SWAPPED)).any()):
        return False
    present = (entries & np.uint64(PRESENT)) != 0
    return bool(((entries[present] & np.uint64(OF_FILE)) != 0).all())


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
