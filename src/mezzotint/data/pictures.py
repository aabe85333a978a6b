"""Captioned picture sets: a parquet file, a folder with metadata.jsonl, or pictures with .txt captions beside them.

Columns: `key`, `captions` (or `caption`, `text`), `image` (parquet: bytes or {"bytes", "path"}) or `file_name`; all
other text columns are kept for `select`. A picture that cannot be decoded is logged and replaced by the next that can.
"""

import hashlib
import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mezzotint.errors import ConfigError, MezzotintError

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
KEPT_BYTES = 4 << 30  # decoded pictures kept in memory; larger sets are decoded again every time


class Picture(NamedTuple):
    """One sample: its name, what can be said about it, its other columns, and its encoded bytes."""

    key: str
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Pictures in a fixed order, decoded to squares on demand."""

    pictures: tuple[Picture, ...]
    _decoded: dict[tuple[int, int], Tensor] = field(default_factory=dict[tuple[int, int], Tensor], repr=False)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def select(self, where: Mapping[str, Sequence[str]], *, by: str = "", at_least: int = 1) -> "PictureSet":
        """Pictures whose columns have one of the named values, if at least `at_least` of those share their column `by`.

        Raises: ConfigError if a column does not exist or nothing is left.
        """
        for column in [*where, *([by] if by else [])]:
            if any(column not in picture.columns for picture in self.pictures):
                raise ConfigError(f"select: no column {column!r}; there are {', '.join(self.pictures[0].columns)}")
        kept = [p for p in self.pictures if all(p.columns[column] in values for column, values in where.items())]
        if by:
            members: dict[str, int] = defaultdict(int)
            for picture in kept:
                members[picture.columns[by]] += 1
            kept = [picture for picture in kept if members[picture.columns[by]] >= at_least]
        if not kept:
            raise ConfigError(f"select: none of {len(self)} pictures is left by {dict(where)}")
        return replace(self, pictures=tuple(kept), _decoded={})

    def fingerprint(self) -> str:
        """SHA-256 over keys, captions and encoded pictures, in order."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            said = json.dumps([picture.key, picture.captions], ensure_ascii=False)
            digest.update(said.encode() + hashlib.sha256(picture.read()).digest())
        return digest.hexdigest()

    def pixels(self, samples: Iterable[int], size: int) -> UInt8[Tensor, "b 3 s s"]:
        """The samples as squares of `size`, centre-cropped, transparent parts white."""
        return torch.stack([self._square(sample, size) for sample in samples])

    def _square(self, sample: int, size: int) -> Tensor:
        if (sample, size) in self._decoded:
            return self._decoded[sample, size]
        for step in range(len(self)):
            chosen = (sample + step) % len(self)
            try:
                square = decoded(self.pictures[chosen].read(), size)
                break
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
                log.warning("%s cannot be decoded and is replaced: %s", self.pictures[chosen].key, error)
        else:
            raise MezzotintError("no picture of the set can be decoded")
        if len(self) * square.numel() <= KEPT_BYTES:
            self._decoded[sample, size] = square
        return square


def decoded(data: bytes, size: int) -> UInt8[Tensor, "3 s s"]:
    """The encoded picture on white, its largest centred square reduced to `size`."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    side = min(flat.size)
    left, top = (flat.width - side) // 2, (flat.height - side) // 2
    if flat.size != (size, size):
        kernel = Image.Resampling.BOX if side % size == 0 else Image.Resampling.LANCZOS
        flat = flat.resize((size, size), kernel, box=(left, top, left + side, top + side))
    return torch.as_tensor(np.array(flat.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_pictures(path: Path) -> PictureSet:
    """The set at `path`: a .parquet file or a folder.

    Raises: MezzotintError if there is nothing to read, or a picture has no caption.
    """
    if path.suffix == ".parquet":
        pictures = _parquet(path)
    elif (path / "metadata.jsonl").exists():
        pictures = _metadata(path)
    elif path.is_dir():
        pictures = _texts(path)
    else:
        raise MezzotintError(f"{path}: no picture set; a .parquet file or a folder of pictures was expected")
    if not pictures:
        raise MezzotintError(f"{path}: no pictures in it")
    silent = next((picture.key for picture in pictures if not picture.captions), None)
    if silent is not None:
        raise MezzotintError(f"{path}: picture {silent!r} has no caption")
    return PictureSet(tuple(pictures))


def _picture(row: Mapping[str, Any], key: str, read: Callable[[], bytes]) -> Picture:
    said = row.get("captions") or row.get("caption") or row.get("text") or ()
    captions = (said,) if isinstance(said, str) else tuple(said)
    columns = {name: value for name, value in row.items() if isinstance(value, str) and name not in {"caption", "text"}}
    return Picture(str(row.get("key", key)), captions, columns, read)


def _parquet(path: Path) -> list[Picture]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise MezzotintError("pyarrow is needed to read parquet; pip install 'mezzotint[train]'") from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()  # Any: whatever the columns are
    return [_picture(row, f"{path.stem}-{i}", partial(_bytes_of, row["image"])) for i, row in enumerate(rows)]


def _bytes_of(image: Any) -> bytes:  # Any: a binary column, or Hugging Face's {"bytes", "path"}
    return image if isinstance(image, bytes) else image["bytes"]


def _metadata(folder: Path) -> list[Picture]:
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    return [_picture(row, row["file_name"], (folder / row["file_name"]).read_bytes) for row in rows]


def _texts(folder: Path) -> list[Picture]:
    pictures: list[Picture] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        text = path.with_suffix(".txt")
        captions = text.read_text("utf-8").strip().splitlines() if text.exists() else []
        pictures.append(Picture(str(path.relative_to(folder)), tuple(captions), {}, path.read_bytes))
    return pictures
