"""The child process of `quarantine`: it gives up what reading does not need, for good, and converts one file.

Started with an open input and an open output, it first sets limits (memory, processor time, file size, descriptors) and
a filter of system calls: no new process, no connection, no opening, renaming or removing of files. Only then is the
first byte read. Linux only; standard library only.

Source: man pages setrlimit(2), seccomp(2), prctl(2); linux/audit.h, linux/filter.h; the system call tables of Linux.
"""

import ctypes
import json
import os
import platform
import resource
import struct

from mezzotint.checkpoints.archives import convert, largest_result
from mezzotint.checkpoints.pickles import Refused

MEMORY_BYTES = 1 << 30  # beside the mapped file
CPU_S = 60  # and one second more for every 16 MB
DESCRIPTORS = 16
REFUSED = 3  # exit code; the reason is on standard output

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # arguments of prctl
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the filter
_ALLOW, _DENY = 0x7FFF0000, 0x00050001  # run the call; fail it with EPERM
_FIRST_X32 = 0x40000000  # numbers of a second table on x86-64

# System calls that are denied, as far as the machine has them: open creat openat openat2, socket socketpair connect,
# clone fork vfork clone3 execve execveat, kill tkill tgkill ptrace process_vm_writev; then rename, link, symlink,
# unlink, mkdir, chmod with their variants, truncate, mount, io_uring_setup, bpf.
_X86_64 = (
    *(2, 85, 257, 437, 41, 53, 42, 56, 57, 58, 435, 59, 322, 62, 200, 234, 101, 311),
    *(82, 264, 316, 86, 265, 88, 266, 87, 263, 83, 258, 90, 268, 76, 165, 425, 321),
)
_AARCH64 = (
    *(56, 437, 198, 199, 203, 220, 435, 221, 281, 129, 130, 131, 117, 271),
    *(38, 276, 37, 36, 35, 34, 53, 45, 40, 425, 280),
)
# machine -> (its number in linux/audit.h, what is denied)
_TABLES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}


def limit(size: int) -> None:
    """Bound what converting a file of `size` bytes may use."""
    bounds = {
        resource.RLIMIT_AS: size + MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_S + size // (16 << 20),
        resource.RLIMIT_FSIZE: largest_result(size) + (64 << 20),  # and names
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        _, hard = resource.getrlimit(kind)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def seal() -> bool:
    """Deny the system calls that reading does not need. Whether it was possible: other machines rely on the limits."""
    if platform.machine() not in _TABLES:
        return False
    audit, denied = _TABLES[platform.machine()]
    # each instruction: code, lines to skip if true, if false, operand; the last two lines are allow and deny
    count = len(denied)
    lines = [
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 0, count + 3, audit),
        (_LOAD, 0, 0, 0),
        (_IF_AT_LEAST, count + 1, 0, _FIRST_X32),
    ]
    lines += [(_IF_EQUAL, count - i, 0, number) for i, number in enumerate(denied)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(program)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    return prctl(_SECCOMP, _FILTER, ctypes.addressof(header), 0, 0) == 0


def main(source: int, target: int) -> int:
    """Convert the file open as `source` into `target`; prints a JSON object; returns the exit code."""
    size = os.fstat(source).st_size
    limit(size)
    seal()
    try:
        with os.fdopen(source, "rb") as file, os.fdopen(target, "wb") as out:
            answer = convert(file, out)
        code = 0
    except Refused as error:
        answer, code = {"what": error.what, "where": error.where}, REFUSED
    except MemoryError:
        answer, code = {"what": f"it needs more than {MEMORY_BYTES >> 20} MB of memory to read", "where": ""}, REFUSED
    except OSError as error:
        answer, code = {"what": f"its tensors cannot be written ({error.strerror})", "where": ""}, REFUSED
    except RecursionError:
        answer, code = {"what": "values inside values without end", "where": ""}, REFUSED
    print(json.dumps(answer))
    return code
