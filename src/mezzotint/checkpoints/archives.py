"""PyTorch's containers: where the tensors of a .ckpt, .pt or .bin file are, and the same tensors as safetensors.

Two kinds are in use: a zip archive with a pickle and one stored entry per storage, and the form before PyTorch 1.6, a
sequence of pickles with the storages behind. Bytes of weights are copied from the mapped file and never interpreted.
Standard library only: this runs in the child process of `quarantine`.

Source: `torch/serialization.py`; the safetensors format, https://huggingface.co/docs/safetensors.
"""

import codecs
import itertools
import json
import mmap
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import BinaryIO, Literal, NamedTuple, cast

from mezzotint.checkpoints.pickles import Inert, Machine, Refused, Storage, Tensor, is_index, kind_of

for _name in ("ascii", "cp437", "latin-1", "raw-unicode-escape"):
    codecs.lookup(_name)  # loaded now: no file can be opened once the process is sealed

MAX_PICKLE_BYTES = 64 << 20  # names and shapes: the largest real ones have 3 MB
MAX_ENTRIES = 100_000  # of an archive, or of all dictionaries of a file
MAX_DEPTH = 16  # of dictionaries in dictionaries
MAX_NAME_CHARACTERS = 512
MAX_EXTRAS = 50  # that are listed
SLACK_BYTES = 1 << 20

_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of memoryview, by element size
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class Span(NamedTuple):
    """Bytes of the file; `crc` is the checksum that a zip archive keeps."""

    start: int
    size: int
    crc: int | None = None


class Content(NamedTuple):
    """What a file holds: its value, and where the bytes of each storage are."""

    value: object
    spans: dict[str, Span]


def largest_result(size: int) -> int:
    """Bytes that converting a file of `size` bytes may write: storages that tensors share are written for each."""
    return 2 * size + SLACK_BYTES


def convert(source: BinaryIO, target: BinaryIO) -> dict[str, str]:
    """Write the tensors of a PyTorch file as safetensors; returns the metadata that was written with them.

    Raises: Refused if the file is damaged, asks for code, or claims what its bytes cannot hold.
    """
    size = source.seek(0, 2)
    source.seek(0)
    if not size:
        raise Refused("the file is empty", "byte 0")
    mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)  # never closed: an error may hold views of it
    content = _read_zip(source, mapped) if mapped[:4] == b"PK\x03\x04" else _read_sequence(mapped)
    tensors, metadata = _named(content.value)
    if sum(tensor.elements * tensor.storage.itemsize for tensor in tensors.values()) > largest_result(size):
        raise Refused("its tensors together are far larger than the file", "sizes of the tensors")
    _write(target, tensors, metadata, content.spans, memoryview(mapped))
    return metadata


def _read_zip(source: BinaryIO, mapped: mmap.mmap) -> Content:
    """The zip form: one folder with data.pkl and data/KEY for every storage, all stored without compression."""
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise Refused(f"a damaged or cut off zip archive ({error})", "directory of the archive") from error
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"{len(entries):,} entries", "directory of the archive")
    spans: dict[str, Span] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        span = _entry_span(entry, mapped, end)
        if entry.filename in spans:
            raise Refused("two entries of the same name", f"archive entry {entry.filename!r:.80}")
        spans[entry.filename] = span
        end = span.start + span.size
    pickles = [name for name in spans if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused(f"a zip archive with {len(pickles)} data.pkl, so not one of PyTorch", "directory of the archive")
    root = pickles[0].removesuffix("data.pkl")
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in spans):
        raise Refused("a TorchScript archive, which is a program", f"archive entry {root}code")
    order = spans.get(f"{root}byteorder")
    if order and mapped[order.start : order.start + order.size] != b"little":
        raise Refused("numbers in big-endian order", f"archive entry {root}byteorder")
    span = spans[pickles[0]]
    if span.size > MAX_PICKLE_BYTES:
        raise Refused(f"a pickle of {span.size:,} bytes", f"archive entry {pickles[0]}")
    raw = mapped[span.start : span.start + span.size]
    if zlib.crc32(raw) != span.crc:
        raise Refused("bytes that do not match their checksum", f"archive entry {pickles[0]}")
    value = Machine().run(BytesIO(raw), pickles[0])
    prefix = f"{root}data/"
    return Content(value, {name[len(prefix) :]: span for name, span in spans.items() if name.startswith(prefix)})


def _entry_span(entry: zipfile.ZipInfo, mapped: mmap.mmap, end: int) -> Span:
    """Where the bytes of an entry are; `end` is where the entry before ended."""
    name, where = entry.orig_filename, f"archive entry {entry.orig_filename!r:.80}"
    if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
        raise Refused("a name that leads out of the archive", where)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise Refused("a symbolic link", where)
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise Refused("a compressed entry, which PyTorch never writes", where)
    if entry.flag_bits & 0x1:
        raise Refused("an encrypted entry", where)
    head = mapped[entry.header_offset : entry.header_offset + 30]
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise Refused("an entry that is not where the directory says", where)
    name_bytes, extra_bytes = struct.unpack("<2H", head[26:])
    at = entry.header_offset + 30
    if mapped[at : at + name_bytes] != name.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
        raise Refused("two different names for one entry", where)
    start = at + name_bytes + extra_bytes
    if entry.header_offset < end or start + entry.file_size > len(mapped):
        raise Refused("an entry that overlaps another or leaves the file", where)
    return Span(start, entry.file_size, entry.CRC)


def _read_sequence(mapped: mmap.mmap) -> Content:
    """The older form: magic number, protocol, system, value and list of keys as pickles; then each storage's bytes."""
    if mapped[:1] != b"\x80":
        start = mapped[:16]
        what = "a web page" if start.lstrip()[:1] == b"<" else "an unknown kind of file"
        raise Refused(f"not a PyTorch file but {what}", f"byte 0: {start!r}")
    if Machine().run(mapped, "magic number") != _LEGACY_MAGIC:
        raise Refused("a pickle that is not PyTorch's", "byte 0")
    if Machine().run(mapped, "protocol number") != _LEGACY_PROTOCOL:
        raise Refused("another protocol than 1001", "protocol number")
    system = Machine().run(mapped, "system record")
    if not isinstance(system, dict) or cast("dict[object, object]", system).get("little_endian") is not True:
        raise Refused("numbers in big-endian order", "system record")
    machine = Machine()
    value = machine.run(mapped, "pickle")
    keys = Machine().run(mapped, "list of storages")
    if not isinstance(keys, list):
        raise Refused("no list of storages", "list of storages")
    sizes = machine.storages
    spans: dict[str, Span] = {}
    at = mapped.tell()
    for key in cast("list[object]", keys):
        storage = sizes.get(key) if isinstance(key, str) else None
        if storage is None:
            raise Refused("a storage that no tensor has, so of unknown size", f"list of storages, {key!r:.80}")
        head = mapped[at : at + 8]
        if len(head) < 8 or int.from_bytes(head, "little") != storage.elements:
            raise Refused("a storage of another size than the pickle says, or cut off", f"byte {at}")
        spans[storage.key] = Span(at + 8, storage.elements * storage.itemsize)
        at += 8 + storage.elements * storage.itemsize
    if at > len(mapped):
        raise Refused(f"a file that is cut off: {len(mapped):,} of {at:,} bytes", f"byte {len(mapped)}")
    return Content(value, spans)


def _named(value: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under their names, and metadata: global_step, and a list of what was left out.

    A dictionary under "state_dict" is the model and all beside it is left out; otherwise dictionaries in dictionaries
    are joined by dots.
    """
    if isinstance(value, Tensor):
        value = {"tensor": value}
    if not isinstance(value, dict):
        raise Refused(f"no dictionary of tensors but {kind_of(value)}", "value of the pickle")
    root = cast("dict[object, object]", value)
    metadata = {"format": "pt"}
    if is_index(step := root.get("global_step")):
        metadata["global_step"] = str(step)
    extras: list[str] = []
    start = root
    if isinstance(state := root.get("state_dict"), dict):
        extras += [f"{key}: {kind_of(item)}" for key, item in root.items() if key not in {"state_dict", "global_step"}]
        start = cast("dict[object, object]", state)
    tensors: dict[str, Tensor] = {}
    for name, item in _leaves(start):
        if not isinstance(item, Tensor):
            extras.append(f"{name}: {kind_of(item)}")
            continue
        if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable() or name == "__metadata__":
            raise Refused("a tensor with an unusable name", f"{name[:80]!r}")
        if name in tensors:
            raise Refused("two tensors of the same name", f"{name[:80]!r}")
        tensors[name] = item
    if not tensors:
        raise Refused("no tensors in the file", ", ".join(extras[:5])[:200] or "value of the pickle")
    if extras:
        listed = (extra[:80] for extra in extras[:MAX_EXTRAS])
        metadata["left_out"] = ", ".join(extra if extra.isprintable() else repr(extra) for extra in listed)
    return tensors, metadata


def _leaves(root: dict[object, object]) -> Iterator[tuple[str, object]]:
    """Everything in nested dictionaries under its joined name; shared ones count every time they are reached."""
    waiting: list[tuple[str, dict[object, object], int]] = [("", root, 1)]
    count = 0
    while waiting:
        prefix, table, depth = waiting.pop()
        for key, item in table.items():
            count += 1
            if count > MAX_ENTRIES or depth > MAX_DEPTH:
                raise Refused(f"more than {MAX_ENTRIES:,} entries or {MAX_DEPTH} levels", f"dictionary {prefix[:80]!r}")
            name = f"{prefix}{key}" if isinstance(key, str) else f"{prefix}{kind_of(key)}"
            inner = item.state if isinstance(item, Inert) else item
            if isinstance(inner, dict) and isinstance(key, str) and len(name) <= MAX_NAME_CHARACTERS:
                waiting.append((f"{name}.", cast("dict[object, object]", inner), depth + 1))
            elif isinstance(key, str) or not isinstance(item, Tensor):
                yield name, item
            else:
                yield name, [item]  # a tensor without a name is listed, not kept


def _write(
    target: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    spans: Mapping[str, Span],
    data: memoryview,
) -> None:
    """The safetensors file; widest elements first, so that every tensor starts at a multiple of its element size."""
    names = sorted(tensors, key=lambda name: (-tensors[name].storage.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.elements * tensor.storage.itemsize
        header[name] = {"dtype": tensor.storage.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    target.write(len(raw).to_bytes(8, "little") + raw)
    checked: set[str] = set()
    for name in names:
        storage = tensors[name].storage
        run = _bytes_of(storage, spans, data, is_checked=storage.key in checked)
        checked.add(storage.key)
        for chunk in _chunks(tensors[name], run):
            target.write(chunk)
    target.flush()


def _bytes_of(storage: Storage, spans: Mapping[str, Span], data: memoryview, *, is_checked: bool) -> memoryview:
    """The bytes of a storage; its checksum is compared once."""
    span, where = spans.get(storage.key), f"storage {storage.key[:80]!r}"
    if span is None:
        raise Refused("a tensor whose storage is not in the file", where)
    if span.size != storage.elements * storage.itemsize:
        raise Refused(f"a storage of {span.size:,} bytes, {storage.elements * storage.itemsize:,} are needed", where)
    run = data[span.start : span.start + span.size]
    if span.crc is not None and not is_checked and zlib.crc32(run) != span.crc:
        raise Refused("bytes that do not match their checksum", where)
    return run


def _chunks(tensor: Tensor, run: memoryview) -> Iterator[memoryview | bytes]:
    """The bytes of a tensor in row-major order: one piece if it is stored so, else row by row."""
    if not tensor.elements:
        return
    itemsize, expected, is_plain = tensor.storage.itemsize, 1, True
    for size, step in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        is_plain &= size == 1 or step == expected
        expected *= size
    if is_plain:
        yield run[tensor.offset * itemsize : (tensor.offset + tensor.elements) * itemsize]
        return
    elements = run.cast(_FORMATS[itemsize])
    *outer, (size, step) = zip(tensor.shape, tensor.stride, strict=True)
    for index in itertools.product(*(range(count) for count, _ in outer)):
        start = tensor.offset + sum(i * jump for i, (_, jump) in zip(index, outer, strict=True))
        row = elements[start : start + (size - 1) * step + 1 : step or 1].tobytes()
        yield row if step else row * size
