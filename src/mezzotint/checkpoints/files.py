"""Weights on disk: safetensors headers, memory-mapped states, sharded folders, atomic writes, hashes.

A header is read and checked without touching the weights, so that a damaged or disguised file is explained before
anything is loaded. States are memory-mapped: reading 4 GB from a warm page cache takes milliseconds and copies nothing.

Source: the safetensors format, https://huggingface.co/docs/safetensors: 8 bytes of header length, JSON, data.
"""

import contextlib
import errno
import hashlib
import json
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mezzotint import storage
from mezzotint.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 100_000  # ten times the largest real file: names of a hostile one stay cheap
MAX_RANK = 8
MAX_NAME_CHARACTERS = 512

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_DISGUISES = {  # first bytes of what people rename to .safetensors
    b"PK\x03\x04": "a zip archive (a PyTorch .ckpt or .pt file)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a Git LFS pointer, not the weights: run `git lfs pull`",
    b"<!DOCTYPE": "a web page, probably a failed download: download it again",
    b"<html": "a web page, probably a failed download: download it again",
}


class _Reader(contextlib.AbstractContextManager["_Reader"], Protocol):
    def get_tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """What a header says about one tensor; `dtype` is the format's name, such as "F16"."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Names, dtypes and shapes of all tensors of one file, or of all shards of one component."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict[str, str])


def read_header(path: str | Path) -> Header:
    """The checked header of a safetensors file; no weights are read.

    Raises: CheckpointError if the file is missing, cut off, something else in disguise, or describes wrong tensors.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = (
                "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is not a regular file"
            )
            raise CheckpointError(f"{path} {what}; a .safetensors file is needed here")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            length = _header_length(path, start, size)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return _parse_header(path, raw, size - 8 - length)


def read_state(path: str | Path, keys: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or those of `keys`, memory-mapped and in the file's dtype.

    Nothing is read until a tensor is used, and nothing is copied. Writing into a tensor never reaches the file.
    Raises: CheckpointError as `read_header`, or if a key is not in the file.
    """
    header = read_header(path)
    names = list(header.tensors) if keys is None else keys
    if absent := [name for name in names if name not in header.tensors]:
        raise CheckpointError(f"{header.path}: no tensor {absent[0]!r} in the file" + more(len(absent) - 1))
    try:
        with cast("_Reader", safe_open(header.path, framework="pt")) as file:  # safetensors declares no types
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{header.path} is not a valid safetensors file: {error}; download it again") from error


def weight_files(folder: str | Path, stem: str, variant: str | None = None) -> tuple[Path, ...]:
    """The safetensors files that hold the component saved under `stem` in `folder`: one, or the shards of an index.

    `variant` picks `stem.variant.safetensors`; None prefers the plain file and falls back to fp16. A symbolic link is
    followed, since the Hugging Face cache consists of them; a shard name with a folder in it is refused.

    Raises: CheckpointError if there are none, only pickles, or a shard of the index is missing.
    """
    folder = Path(folder)
    for suffix in [f".{variant}"] if variant else ["", ".fp16"]:
        single = folder / f"{stem}{suffix}.safetensors"
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if single.is_file():
            return (single,)
        if index.is_file():
            return tuple(folder / name for name in dict.fromkeys(_read_index(index).values()))
    there = sorted(entry.name for entry in folder.glob("*")) if folder.is_dir() else []
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in there):
        raise CheckpointError(
            f"{folder}: {stem}.safetensors is missing, there are only pickle files, which can run code; "
            "convert them with `mezzotint convert`"
        )
    wanted = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    found = f"found {', '.join(there[:5])}" if there else "the folder is empty or missing"
    raise CheckpointError(f"{folder}: {wanted} is missing ({found}); download it again" + _variant_hint(variant))


def read_sharded_header(folder: str | Path, stem: str, variant: str | None = None) -> Header:
    """One header for all shards of a component; `path` is the folder if there are several.

    Raises: CheckpointError as `weight_files` and `read_header`, or if two shards hold the same tensor.
    """
    files = weight_files(folder, stem, variant)
    headers = [read_header(path) for path in files]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        if twice := tensors.keys() & header.tensors.keys():
            raise CheckpointError(f"{header.path}: tensor {min(twice)!r} is in another shard too; download it again")
        tensors |= header.tensors
    index = Path(folder) / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
    if len(files) > 1 and index.is_file() and (absent := sorted(_read_index(index).keys() - tensors.keys())):
        raise CheckpointError(f"{index}: tensor {absent[0]!r} is in no shard" + more(len(absent) - 1))
    return Header(path=files[0] if len(files) == 1 else Path(folder), tensors=tensors, metadata=headers[0].metadata)


def read_sharded(folder: str | Path, stem: str, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of a component, memory-mapped, from one file or from its shards. Raises: as `read_sharded_header`."""
    read_sharded_header(folder, stem, variant)
    state: dict[str, Tensor] = {}
    for path in weight_files(folder, stem, variant):
        state |= read_state(path)
    return state


def write_state(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    hash_key: str | None = None,
) -> None:
    """Write a safetensors file, all of it or nothing; floating-point tensors become `dtype` if one is given.

    One tensor at a time is made contiguous and cast, so that memory-mapped input of any size needs little memory. The
    bytes depend on the tensors and the metadata alone. `hash_key` names the metadata entry that receives "0x" and the
    SHA-256 of the data after the header.
    Raises: CheckpointError if the file cannot be written or a dtype has no name in the format.
    """
    path = Path(path)
    out = {name: _written_dtype(path, name, tensor, dtype) for name, tensor in tensors.items()}
    # widest elements first: every tensor then starts at a multiple of its element size
    names = sorted(tensors, key=lambda name: (-out[name].itemsize, name))
    spans: dict[str, object] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * out[name].itemsize
        spans[name] = {"dtype": _NAMES[out[name]], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    texts = dict(metadata or {}) | ({hash_key: "0x" + "0" * 64} if hash_key else {})
    sha256 = hashlib.sha256()
    with atomic(path) as file:
        file.write(_header_bytes(spans, texts))
        for name in names:
            flat = tensors[name].detach().to("cpu", out[name]).contiguous().reshape(-1).view(torch.uint8)
            data = flat.numpy().data
            file.write(data)
            if hash_key:
                sha256.update(data)
        if hash_key:
            file.seek(0)
            file.write(_header_bytes(spans, texts | {hash_key: f"0x{sha256.hexdigest()}"}))


@contextlib.contextmanager
def atomic(path: str | Path) -> Generator[BinaryIO]:
    """`storage.atomic` with a reason in words. Raises: CheckpointError if the file cannot be written."""
    try:
        with storage.atomic(path) as file:
            yield file
    except OSError as error:
        advice = "free some space" if error.errno == errno.ENOSPC else "choose a folder that can be written"
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}; {advice}") from error


def read_json(path: str | Path) -> dict[str, object]:
    """The JSON object in a file. Raises: CheckpointError if it is missing, damaged or not an object."""
    path = Path(path)
    try:
        value: object = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found {type(value).__name__}, a JSON object is expected")
    return cast("dict[str, object]", value)  # keys of a JSON object are strings


def write_json(path: str | Path, value: Mapping[str, object]) -> None:
    """Write a JSON object as diffusers and transformers do: indented, keys in order; all of it or nothing."""
    with atomic(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file. Raises: CheckpointError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def more(count: int) -> str:
    """The end of a shortened list: " and 3 more", or nothing."""
    return f" and {count} more" if count > 0 else ""


def _header_bytes(spans: dict[str, object], texts: dict[str, str]) -> bytes:
    header = ({"__metadata__": dict(sorted(texts.items()))} if texts else {}) | spans
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # data starts at a multiple of 8
    return len(raw).to_bytes(8, "little") + raw


def _header_length(path: Path, start: bytes, size: int) -> int:
    for magic, what in _DISGUISES.items():
        if start.startswith(magic):
            advice = "" if ": " in what else "; name it .ckpt, and it is converted in a closed process"
            raise CheckpointError(f"{path} is not a safetensors file but {what}{advice}")
    if size < 10:
        raise CheckpointError(f"{path} is cut off: {size} bytes are less than a header; download it again")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        raise CheckpointError(f"{path} is not a safetensors file: its header does not start with '{{'")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: a header of {length:,} bytes is refused; the format allows {MAX_HEADER_BYTES:,}"
        )
    if length > size - 8:
        raise CheckpointError(f"{path} is cut off: {size:,} bytes, the header alone has {length:,}; download it again")
    return length


def _parse_header(path: Path, raw: bytes, data_bytes: int) -> Header:
    try:
        parsed: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error}); download it again") from error
    entries = cast("dict[str, object]", parsed)  # it starts with "{"
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is not a JSON object")
    texts = cast("dict[str, object]", metadata)  # keys of a JSON object are strings
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise CheckpointError(f"{path}: __metadata__ value of {wrong[0]!r} is not a string")
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(entries):,} tensors are refused; at most {MAX_TENSORS:,} are read")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        info, start, end = _parse_entry(path, name, entry)
        tensors[name] = info
        spans.append((start, end, name))
    _check_spans(path, sorted(spans), data_bytes)
    return Header(path=path, tensors=tensors, metadata=cast("dict[str, str]", texts))  # checked above


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two entries named {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _parse_entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, int, int]:
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise CheckpointError(f"{path}: tensor name {name[:80]!r} is too long or not printable")
    fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}  # keys of a JSON object are strings
    dtype, shape, offsets = fields.get("dtype"), _integers(fields.get("shape")), _integers(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise CheckpointError(f"{path}: the header entry of {name!r} is damaged; download it again")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name!r} has dtype {dtype!r}, which is not supported; one of: {', '.join(DTYPES)}"
        )
    if len(shape) > MAX_RANK:
        raise CheckpointError(f"{path}: {name!r} has {len(shape)} dimensions; at most {MAX_RANK} are read")
    info = TensorInfo(dtype=dtype, shape=shape)
    start, end = offsets
    if end - start != info.nbytes:
        raise CheckpointError(
            f"{path}: {name!r} has {end - start:,} bytes of data, {info.nbytes:,} are needed for {dtype} {list(shape)}"
        )
    return info, start, end


def _integers(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)  # element types are checked here
    whole = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0)
    return whole if len(whole) == len(items) else None


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Data must be covered without overlap, hole or rest: nothing can hide between tensors."""
    expected = 0
    for start, end, name in spans:
        if start < expected:
            raise CheckpointError(f"{path}: data of {name!r} overlaps another tensor; do not trust this file")
        if start > expected:
            raise CheckpointError(f"{path}: {start - expected:,} unused bytes before {name!r}; do not trust this file")
        expected = end
    if expected > data_bytes:
        raise CheckpointError(f"{path} is cut off: {data_bytes:,} of {expected:,} bytes of weights; download it again")
    if expected < data_bytes:
        raise CheckpointError(f"{path}: {data_bytes - expected:,} bytes after the last tensor; do not trust this file")


def _read_index(index: Path) -> dict[str, str]:
    """tensor name -> shard file name, of an index whose shards are all there."""
    value = read_json(index).get("weight_map")
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{index}: weight_map is missing; download it again")
    weights = cast("dict[str, object]", value)  # keys of a JSON object are strings
    names: dict[str, str] = {}
    for tensor, name in weights.items():
        if not isinstance(name, str) or name in {"", ".", ".."} or any(mark in name for mark in "/\\:\0"):
            raise CheckpointError(
                f"{index}: shard {name!r} of {tensor!r} is not a plain file name; do not trust this folder"
            )
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: shard {name!r} is not a .safetensors file")
        names[tensor] = name
    if absent := sorted({name for name in names.values() if not (index.parent / name).is_file()}):
        raise CheckpointError(f"{index.parent}: shard {absent[0]} is missing{more(len(absent) - 1)}; download it again")
    return names


def _variant_hint(variant: str | None) -> str:
    return f", or leave out variant {variant!r}" if variant else ""


def _written_dtype(path: Path, name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    chosen = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if chosen not in _NAMES:
        raise CheckpointError(f"{path}: {name!r} has dtype {chosen}, which safetensors cannot hold")
    return chosen
