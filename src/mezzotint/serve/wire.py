"""What goes between the two processes: one JSON object a line, followed by as many bytes as it says.

Nothing is ever unpickled: a line can only become JSON, and bytes stay bytes.
"""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple, cast

MAX_LINE = 1 << 24
MAX_BYTES = 1 << 30
SIZES = "bytes"  # key of the list with the sizes of what follows


class Frame(NamedTuple):
    """One message."""

    head: dict[str, Any]  # Any: JSON
    parts: tuple[bytes, ...] = ()


def packed(head: Mapping[str, Any], *parts: bytes) -> bytes:  # Any: JSON
    """The message as it is sent."""
    said = dict(head) | ({SIZES: [len(part) for part in parts]} if parts else {})
    return b"".join([json.dumps(said, separators=(",", ":")).encode(), b"\n", *parts])


def opened(line: bytes) -> tuple[dict[str, Any], tuple[int, ...]]:  # Any: JSON
    """Head and sizes of the message that begins with this line. Raises: ValueError if it is none."""
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("a message is an object")
    said = cast(dict[str, Any], head)  # JSON objects have text for keys
    sizes = tuple(int(size) for size in said.pop(SIZES, ()))
    if any(size < 0 for size in sizes) or sum(sizes) > MAX_BYTES:
        raise ValueError(f"a message announces {sum(sizes)} bytes")
    return said, sizes


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next message; None when the other side is gone. Raises: ValueError for anything else than a message."""
    line = stream.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        return None
    head, sizes = opened(line)
    parts = tuple(stream.read(size) for size in sizes)
    return Frame(head, parts) if all(len(part) == size for part, size in zip(parts, sizes, strict=True)) else None
