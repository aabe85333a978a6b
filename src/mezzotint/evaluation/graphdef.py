"""Constants of a frozen TensorFlow graph (.pb), read without TensorFlow and without running anything.

A graph is a protocol buffer: fields of (number << 3 | kind) and a value; kind 0 is a varint, 1 and 5 are 8 and 4 bytes,
2 is a length with as many bytes. Four messages matter: GraphDef, NodeDef, AttrValue and TensorProto.

Source: https://protobuf.dev/programming-guides/encoding; TensorFlow's `graph.proto`, `node_def.proto`,
`attr_value.proto`, `tensor.proto` and `tensor_shape.proto` for the numbers of fields.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mezzotint.errors import CheckpointError

MAX_BYTES = 1 << 30
FLOAT = 1  # DT_FLOAT

_NODE = 1  # of GraphDef
_NAME, _OP, _ATTRIBUTE = 1, 2, 5  # of NodeDef
_KEY, _VALUE = 1, 2  # of an entry of a map
_TENSOR = 8  # of AttrValue
_DTYPE, _SHAPE, _CONTENT, _FLOATS = 1, 2, 4, 5  # of TensorProto
_DIM, _SIZE = 2, 1  # of TensorShapeProto and of its Dim

Field = tuple[int, int | memoryview]


def read_constants(path: Path) -> dict[str, Tensor]:
    """The float32 constants of a graph by the names of their nodes, in TensorFlow's shapes.

    Raises: CheckpointError if the file cannot be read or is not such a graph.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: a graph of more than {MAX_BYTES:,} bytes is refused")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[str, Tensor] = {}
    try:
        for number, node in _fields(memoryview(data)):
            if number == _NODE and isinstance(node, memoryview):
                name, tensor = _constant(node)
                if tensor is not None:
                    found[name] = tensor
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is not a TensorFlow graph, or is damaged ({error}); download it again"
        ) from error
    return found


def _fields(data: memoryview) -> Iterator[Field]:
    """Number and value of every field of a message: a number, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        match kind:
            case 0:
                value, at = _varint(data, at)
                yield number, value
                continue
            case 1 | 5:
                size = 8 if kind == 1 else 4
            case 2:
                size, at = _varint(data, at)
            case _:
                raise ValueError(f"a field of kind {kind}")
        if at + size > len(data):
            raise ValueError(f"a field of {size:,} bytes where {len(data) - at:,} are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _constant(node: memoryview) -> tuple[str, Tensor | None]:
    """Name of a node, and its value if it is a float32 constant."""
    name, is_constant, value = "", False, None
    for number, field in _fields(node):
        if not isinstance(field, memoryview):
            continue
        if number == _NAME:
            name = bytes(field).decode()
        elif number == _OP:
            is_constant = bytes(field) == b"Const"
        elif number == _ATTRIBUTE:
            entry = dict(_fields(field))
            key, inner = entry.get(_KEY), entry.get(_VALUE)
            if isinstance(key, memoryview) and bytes(key) == b"value" and isinstance(inner, memoryview):
                value = dict(_fields(inner)).get(_TENSOR, value)
    return name, _tensor(value) if is_constant and isinstance(value, memoryview) else None


def _tensor(data: memoryview) -> Tensor | None:
    """A TensorProto: its bytes, or a list of floats, of which the last one fills the rest."""
    dtype, shape = 0, list[int]()
    raw = bytearray()
    for number, field in _fields(data):
        if number == _DTYPE and isinstance(field, int):
            dtype = field
        elif number == _SHAPE and isinstance(field, memoryview):
            dims = [dict(_fields(dim)) for kind, dim in _fields(field) if kind == _DIM and isinstance(dim, memoryview)]
            shape = [size if isinstance(size := dim.get(_SIZE, 0), int) else 0 for dim in dims]
        elif number in {_CONTENT, _FLOATS} and isinstance(field, memoryview):
            raw += field
    if dtype != FLOAT:
        return None
    count = math.prod(shape)
    if len(raw) % 4 or not raw or not 0 < count <= MAX_BYTES // 4 or len(raw) // 4 > count:
        raise ValueError(f"a tensor of shape {shape} with {len(raw):,} bytes")
    values = np.frombuffer(bytes(raw), "<f4")
    filled = np.concatenate([values, np.full(count - len(values), values[-1], np.float32)])
    return torch.as_tensor(filled.astype(np.float32)).reshape(shape)
