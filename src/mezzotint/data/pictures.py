"""Captioned picture sets: parquet, WebDataset tars, a folder with metadata.jsonl or .txt captions, kohya's layouts.

Columns: `key`, `captions` (or `caption`, `text`), `image` (parquet: bytes or {"bytes", "path"}) or `file_name`; all
other columns are kept, texts for `select`, numbers for filters. A picture that cannot be decoded is logged and replaced
by the next that can.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mezzotint.data.buckets import BucketRule, Placement
from mezzotint.data.card import Card, curate
from mezzotint.data.filters import Filters
from mezzotint.data.kohya import read_folders, read_kohya
from mezzotint.data.order import keyed
from mezzotint.data.sample import SUFFIXES, DamagedPicture, Picture, opened, picture_of, size_of, upright
from mezzotint.data.webdataset import read_tars, tars
from mezzotint.errors import ConfigError, MezzotintError

log = logging.getLogger(__name__)

KEPT_BYTES = 4 << 30  # decoded pictures kept in memory; larger sets are decoded again every time


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Pictures in a fixed order, decoded to squares or to their buckets on demand."""

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

    def curated(self, filters: Filters) -> tuple["PictureSet", Card]:
        """The pictures that pass the filters, and the card that says how many did not, and why.

        Raises: MezzotintError if nothing is left.
        """
        kept, card = curate(self.pictures, filters)
        return PictureSet(kept), card

    def placed(self, rule: BucketRule, view: int | None = None) -> tuple["PictureSet", list[Placement]]:
        """The pictures whose size can be read, and how each fits its bucket: centred, or cut where `view` decides.

        Of one view the same picture is always cut at the same place.
        """
        kept: list[Picture] = []
        placements: list[Placement] = []
        for picture in self.pictures:
            try:
                size = size_of(picture)
            except DamagedPicture as error:
                log.warning("%s is left out: %s", picture.key, error)
                continue
            kept.append(picture)
            if view is None:
                placements.append(rule.place(size))
            else:
                draws = torch.rand(2, generator=keyed("crop", picture.key, view), dtype=torch.float64)
                placements.append(rule.place(size, (float(draws[0]), float(draws[1]))))
        return PictureSet(tuple(kept)), placements

    def cut(self, samples: Iterable[int], placements: Sequence[Placement]) -> UInt8[Tensor, "b 3 h w"]:
        """The samples as `placements`, one for each picture of the set, say; all samples of one bucket.

        A picture that cannot be decoded is logged and replaced by the next of its bucket.
        """
        return torch.stack([self._cut(sample, placements) for sample in samples])

    def _cut(self, sample: int, placements: Sequence[Placement]) -> Tensor:
        for step in range(len(self)):
            chosen = (sample + step) % len(self)
            place = placements[chosen]
            if place.target != placements[sample].target:
                continue
            try:
                picture = opened(self.pictures[chosen])
            except DamagedPicture as error:
                log.warning("%s cannot be decoded and is replaced: %s", self.pictures[chosen].key, error)
                continue
            if picture.size != place.resized:
                picture = picture.resize(place.resized, Image.Resampling.LANCZOS)
            window = (place.left, place.top, place.left + place.target.width, place.top + place.target.height)
            return torch.as_tensor(np.array(picture.crop(window))).permute(2, 0, 1).contiguous()
        width, height = placements[sample].target
        raise MezzotintError(f"no picture of bucket {width}x{height} can be decoded")

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
                square = _squared(opened(self.pictures[chosen]), size)
                break
            except DamagedPicture as error:
                log.warning("%s cannot be decoded and is replaced: %s", self.pictures[chosen].key, error)
        else:
            raise MezzotintError("no picture of the set can be decoded")
        if len(self) * square.numel() <= KEPT_BYTES:
            self._decoded[sample, size] = square
        return square


def decoded(data: bytes, size: int) -> UInt8[Tensor, "3 s s"]:
    """The encoded picture on white, its largest centred square reduced to `size`.

    Raises: DamagedPicture.
    """
    return _squared(upright(data), size)


def _squared(picture: Image.Image, size: int) -> Tensor:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    if picture.size != (size, size):
        kernel = Image.Resampling.BOX if side % size == 0 else Image.Resampling.LANCZOS
        picture = picture.resize((size, size), kernel, box=(left, top, left + side, top + side))
    return torch.as_tensor(np.array(picture)).permute(2, 0, 1).contiguous()


def read_pictures(path: Path) -> PictureSet:
    """The set at `path`: a .parquet, .tar or .toml file, or a folder.

    Raises: MezzotintError if there is nothing to read, or a picture has no caption.
    """
    if path.suffix == ".parquet":
        pictures = _parquet(path)
    elif path.suffix == ".toml":
        pictures = read_kohya(path)
    elif path.is_file() and path.suffix == ".tar":
        pictures = read_tars(path)
    elif (path / "metadata.jsonl").exists():
        pictures = _metadata(path)
    elif path.is_dir():
        dataset = read_folders(path)
        pictures = read_tars(path) if tars(path) else dataset.pictures() if dataset else _texts(path)
    else:
        raise MezzotintError(f"{path}: no picture set; .parquet, .tar, .toml or a folder of pictures was expected")
    if not pictures:
        raise MezzotintError(f"{path}: no pictures in it")
    silent = next((picture.key for picture in pictures if not picture.captions), None)
    if silent is not None:
        count = sum(not picture.captions for picture in pictures)
        raise MezzotintError(
            f"{path}: {count} of {len(pictures)} pictures have no caption, the first is {silent!r}; give each a .txt "
            "file of its name, or a line with its file_name and caption in metadata.jsonl"
        )
    return PictureSet(tuple(pictures))


def write_folder(pictures: PictureSet, folder: Path) -> None:
    """Write a set as PNG files 00000.png … in its order, metadata.jsonl with captions and columns, and prompts.txt with
    the first caption of each. What cannot be decoded is logged and left out.

    Raises: ConfigError if the folder has content.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: has content; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    first: list[str] = []
    for number, picture in enumerate(pictures.pictures):
        try:
            image = opened(picture)
        except DamagedPicture as error:
            log.warning("%s cannot be decoded and is left out: %s", picture.key, error)
            continue
        image.save(folder / (name := f"{number:05d}.png"))
        told = {**picture.columns, **picture.numbers, "key": picture.key}
        rows.append({**told, "file_name": name, "captions": picture.captions})
        first.append(picture.captions[0])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, "utf-8")
    prompts = "".join(" ".join(said.split()) + "\n" for said in first)
    (folder / "prompts.txt").write_text(prompts, "utf-8")


def _parquet(path: Path) -> list[Picture]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise MezzotintError("pyarrow is needed to read parquet; pip install 'mezzotint[train]'") from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()  # Any: whatever the columns are
    return [picture_of(row, f"{path.stem}-{i}", partial(_bytes_of, row.get("image"))) for i, row in enumerate(rows)]


def _bytes_of(image: Any) -> bytes:  # Any: a binary column, or Hugging Face's {"bytes", "path"}
    if image is None:  # tables of addresses can be filtered, not trained on
        raise ValueError("the row has no image")
    return image if isinstance(image, bytes) else image["bytes"]


def _metadata(folder: Path) -> list[Picture]:
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    return [picture_of(row, row["file_name"], (folder / row["file_name"]).read_bytes) for row in rows]


def _texts(folder: Path) -> list[Picture]:
    pictures: list[Picture] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        text = path.with_suffix(".txt")
        captions = text.read_text("utf-8").strip().splitlines() if text.exists() else []
        pictures.append(Picture(str(path.relative_to(folder)), tuple(captions), {}, path.read_bytes))
    return pictures
