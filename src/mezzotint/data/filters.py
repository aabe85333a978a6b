"""Which pictures of a set are kept: bounds on scores and sizes, useful captions, readable files, no duplicates.

Each gate judges a picture by itself, so that their order cannot matter. Duplicates are judged last, among what all
gates left: of several alike the largest stays, whatever the order of the set. No torch.
"""

import hashlib
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from mezzotint.data.sample import DamagedPicture, Picture, Size, opened, size_of
from mezzotint.errors import ConfigError

log = logging.getLogger(__name__)

# Names that data sets give the scores, in lower case; LAION: AESTHETIC_SCORE or aesthetic, WIDTH, HEIGHT.
COLUMNS = {
    "aesthetic": ("aesthetic", "aesthetic_score"),
    "pwatermark": ("pwatermark",),
    "punsafe": ("punsafe",),
    "similarity": ("similarity",),
}
HASH_BITS = 64
MOST_DISTANCE = 16  # bits; far more differ between unlike pictures (about half)
_NOISE = 2  # grey levels between neighbours that say nothing
_COLOUR = 16  # of 255: alike pictures differ by less in each of 4x4 patches
_LINK = re.compile(r"https?://|www\.|\.(jpe?g|png|gif|webp|bmp)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Both ends are kept. A picture without the value is refused unless `keeps_missing`."""

    at_least: float | None = None
    at_most: float | None = None
    keeps_missing: bool = False

    def __post_init__(self) -> None:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ConfigError(f"at_least {self.at_least:g} is above at_most {self.at_most:g}: nothing would be kept")

    def keeps(self, value: float | None) -> bool:
        """Whether a value passes; None and NaN are missing values."""
        if value is None or math.isnan(value):
            return self.keeps_missing
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """What makes a caption useful. Captions that fail are taken away; a picture without any left is refused."""

    words: Bounds = field(default_factory=Bounds)
    letters: float = 0.0  # least share of letters among what is not a space
    keeps_links: bool = False  # addresses and file names

    def keeps(self, caption: str) -> bool:
        """Whether the caption is useful."""
        visible = "".join(caption.split())
        if not visible or (not self.keeps_links and _LINK.search(caption)):
            return False
        is_language = sum(map(str.isalpha, visible)) >= self.letters * len(visible)
        return is_language and self.words.keeps(len(caption.split()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Equal files, and with `distance` pictures whose 64-bit difference hashes are at most so many bits apart."""

    distance: int | None = None

    def __post_init__(self) -> None:
        if self.distance is not None and not 0 <= self.distance <= MOST_DISTANCE:
            raise ConfigError(f"duplicates.distance {self.distance}: must lie in 0 … {MOST_DISTANCE} bits")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """The data rule of a recipe. What is not set does not filter.

    `size` bounds the shorter side in pixels and `aspect` the longer by the shorter side: of the columns WIDTH and
    HEIGHT where there are such, else of the file. `columns` bounds any other number by the name of its column.
    """

    aesthetic: Bounds | None = None
    pwatermark: Bounds | None = None
    punsafe: Bounds | None = None
    similarity: Bounds | None = None
    columns: Mapping[str, Bounds] = field(default_factory=dict[str, Bounds])
    captions: Captions | None = None
    size: Bounds | None = None
    aspect: Bounds | None = None
    readable: bool = True  # decodes every picture once
    duplicates: Duplicates | None = None

    def gates(self) -> tuple["Gate", ...]:
        """The gates that are set, cheap ones first; the result is the same in any order."""
        scores = [(name, getattr(self, name), partial(_number, COLUMNS[name])) for name in COLUMNS]
        own = [(f"columns.{n}", bounds, partial(_number, (n.lower(),))) for n, bounds in sorted(self.columns.items())]
        measures = [("size", self.size, _shorter), ("aspect", self.aspect, _aspect)]
        gates = [Gate(name, value, bounds) for name, bounds, value in [*scores, *own] if bounds is not None]
        if self.captions is not None:
            gates.append(Gate("captions", _has_captions, Bounds(at_least=1)))
        gates += [Gate(name, value, bounds) for name, bounds, value in measures if bounds is not None]
        return (*gates, Gate("readable", _readable, Bounds())) if self.readable else tuple(gates)

    def said(self, picture: Picture) -> Picture:
        """The picture with its useful captions only."""
        if self.captions is None:
            return picture
        return picture._replace(captions=tuple(filter(self.captions.keeps, picture.captions)))


class Gate(NamedTuple):
    """One question about a picture. The value is None where it has no answer."""

    name: str
    value: Callable[[Picture], float | None]
    bounds: Bounds


class Passed(NamedTuple):
    """What a gate left, and how many it judged, could not judge and refused (those it could not judge included)."""

    pictures: list[Picture]
    judged: int
    missing: int
    refused: int


def passed(pictures: Sequence[Picture], gate: Gate) -> Passed:
    """The pictures that pass one gate, in their order."""
    values = [gate.value(picture) for picture in pictures]
    kept = [picture for picture, value in zip(pictures, values, strict=True) if gate.bounds.keeps(value)]
    missing = sum(value is None or math.isnan(value) for value in values)
    return Passed(kept, len(pictures), missing, len(pictures) - len(kept))


def distinct(pictures: Sequence[Picture], duplicates: Duplicates) -> tuple[Passed, Passed]:
    """What is left without equal files, and then without nearly equal pictures; both in the order of the set.

    The largest of several alike stays, of equally large ones the first by key. Pictures that cannot be decoded are
    missing and refused.
    """
    looks = {id(picture): look for picture in pictures if (look := _look(picture)) is not None}
    ranked = sorted(
        (p for p in pictures if id(p) in looks),
        key=lambda p: (-looks[id(p)].pixels, p.key, looks[id(p)].digest, p.captions),
    )
    seen: set[bytes] = set()
    unequal = [p for p in ranked if not (looks[id(p)].digest in seen or seen.add(looks[id(p)].digest))]
    unlike = unequal if duplicates.distance is None else _unlike(unequal, looks, duplicates.distance)

    def in_order(kept: Iterable[Picture]) -> list[Picture]:
        names = {id(picture) for picture in kept}
        return [picture for picture in pictures if id(picture) in names]

    first = Passed(in_order(unequal), len(pictures), len(pictures) - len(looks), len(pictures) - len(unequal))
    return first, Passed(in_order(unlike), len(unequal), 0, len(unequal) - len(unlike))


class Look(NamedTuple):
    """What a picture looks like: the digest of its file, its area, a 64-bit hash of its shapes, and its colours."""

    digest: bytes
    pixels: int
    shape: int
    colours: np.ndarray[tuple[int, ...], np.dtype[np.int16]]  # [4 4 3], 0 … 255

    def is_like(self, other: "Look", distance: int) -> bool:
        """Whether hashes are within `distance` bits and no patch has another colour (a red heart is no blue one)."""
        if (self.shape ^ other.shape).bit_count() > distance:
            return False
        return int(np.abs(self.colours - other.colours).max()) < _COLOUR


def look(picture: Image.Image, digest: bytes = b"") -> Look:
    """What an RGB picture looks like; scale and compression hardly change it."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = (grey[:, 1:] - grey[:, :-1] > _NOISE).flatten()
    colours = np.asarray(picture.resize((4, 4), Image.Resampling.BOX)).astype(np.int16)
    return Look(digest, picture.width * picture.height, int("".join("01"[bit] for bit in bits.astype(int)), 2), colours)


def _unlike(ranked: Iterable[Picture], looks: Mapping[int, Look], distance: int) -> list[Picture]:
    """Those that are not like one before; hashes within `distance` bits agree in one of distance + 1 bands of bits."""
    bands: dict[tuple[int, int], list[Look]] = defaultdict(list)
    width = HASH_BITS // (distance + 1)
    kept: list[Picture] = []
    for picture in ranked:
        own = looks[id(picture)]
        places = [(band, own.shape >> band * width & (1 << width) - 1) for band in range(distance + 1)]
        if not any(own.is_like(other, distance) for place in places for other in bands[place]):
            kept.append(picture)
            for place in places:
                bands[place].append(own)
    return kept


def _look(picture: Picture) -> Look | None:
    try:
        return look(opened(picture), hashlib.sha256(picture.read()).digest())
    except DamagedPicture as error:
        return _said_damaged(picture, error)


def _number(names: Sequence[str], picture: Picture) -> float | None:
    return next((value for name, value in picture.numbers.items() if name.lower() in names), None)


def _size(picture: Picture) -> Size | None:
    width, height = _number(("width",), picture), _number(("height",), picture)
    if width is not None and height is not None:
        return Size(int(width), int(height))
    try:
        return size_of(picture)
    except DamagedPicture as error:
        return _said_damaged(picture, error)


def _shorter(picture: Picture) -> float | None:
    return None if (size := _size(picture)) is None else min(size)


def _aspect(picture: Picture) -> float | None:
    size = _size(picture)
    return None if size is None or min(size) < 1 else max(size) / min(size)


def _has_captions(picture: Picture) -> float:
    return len(picture.captions)


def _readable(picture: Picture) -> float | None:
    try:
        opened(picture)
        return 1.0
    except DamagedPicture as error:
        return _said_damaged(picture, error)


def _said_damaged(picture: Picture, error: DamagedPicture) -> None:
    log.warning("%s is left out: %s", picture.key, error)
