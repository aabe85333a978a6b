"""Pictures to be judged, from folders, zip archives and lists of files, decoded to 8-bit RGB. No torch.

They come in one canonical order, sorted by name, whatever order a file system lists them in. What is decoded how is
stated here once, because it moves the numbers:

* grey and palette pictures become RGB; 16-bit grey is divided by 257 and rounded;
* alpha: on white, with a note, unless it is opaque everywhere;
* CMYK and Lab become RGB by Pillow's own tables, with a note; colour profiles are not applied;
* EXIF orientation is not applied (no other evaluation program does), with a note;
* animated, damaged, empty and unknown files, and float pictures, are problems: one line each, and the run goes on.

Letters: h w rows and columns.
"""

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mezzotint.errors import RequestError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 1 << 26
MAX_ENTRY_BYTES = 1 << 30  # of a zip archive, unpacked

_ORIENTATION = 0x0112
Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # Any: numpy's shape parameter; [h w 3]


class Problem(NamedTuple):
    """A picture that is not used and why, or, among notes, one that was converted and how."""

    name: str
    what: str


class Decoded(NamedTuple):
    """A picture as [h w 3], and what had to be done to it, in words ("" for nothing)."""

    pixels: Pixels
    note: str = ""


class Unreadable(Exception):
    """A picture that cannot be judged; the text says why, without its name."""


class Source(NamedTuple):
    """A picture's name, relative to its folder or archive, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


class PictureList(NamedTuple):
    """Pictures in canonical order: sorted by name."""

    sources: tuple[Source, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(source.name for source in self.sources)


def list_pictures(where: str | Path | Sequence[str | Path]) -> PictureList:
    """The pictures of a folder (with its subfolders), of a zip archive, of one file, or of a list of files.

    A list is sorted and must not name a file twice. In folders and archives, files with other suffixes than those of
    pictures and hidden ones are passed over.
    Raises: RequestError if there is nothing there, or no pictures in it.
    """
    if not isinstance(where, str | Path):
        return _listed([Path(path) for path in where])
    path = Path(where)
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.is_file() and _is_picture(p.relative_to(path).as_posix())]
        sources = [Source(p.relative_to(path).as_posix(), p.read_bytes) for p in files]
    elif path.is_file() and path.suffix.lower() == ".zip":
        sources = _zipped(path)
    elif path.is_file():
        return PictureList((Source(path.name, path.read_bytes),))
    else:
        raise RequestError(f"{str(path)!r}: no such folder or file of pictures")
    if not sources:
        raise RequestError(f"{str(path)!r}: no pictures in it; files ending in {', '.join(sorted(SUFFIXES))} are read")
    return PictureList(tuple(sorted(sources, key=lambda source: source.name)))


def decode(data: bytes) -> Decoded:
    """8-bit RGB of an encoded picture, by the rules at the top of this file. Raises: Unreadable."""
    if not data:
        raise Unreadable("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(f"has {width}x{height} pixels; at most {MAX_PIXELS:,} are read")
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise Unreadable(f"is animated or has several pages ({frames}); save the one that counts by itself")
            image.load()
            notes = _oriented(image)
            pixels, note = _rgb(image)
    except Image.UnidentifiedImageError:
        raise Unreadable(f"is no picture of a known kind ({', '.join(FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        raise Unreadable(f"is damaged: {error}") from None
    return Decoded(pixels, "; ".join(text for text in (note, notes) if text))


def _rgb(image: Image.Image) -> tuple[Pixels, str]:
    """[h w 3] and what was done in words."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image), ""
    if image.mode in {"F"}:
        raise Unreadable(f"has float pixels (mode {image.mode}), whose range is not known; save it with 8 bits")
    if image.mode.startswith("I"):  # I;16, I;16B, and I where Pillow reads 16-bit files so
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unreadable(f"has pixels from {wide.min()} to {wide.max()}; save it with 8 or 16 bits")
        grey = np.rint(wide / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), "16-bit grey reduced to 8 bits"
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema() == (255, 255):  # opaque: alpha says nothing
            return np.asarray(layered.convert("RGB")), ""
        white = Image.new("RGBA", layered.size, "white")
        return np.asarray(Image.alpha_composite(white, layered).convert("RGB")), "transparent parts are white"
    note = f"converted from {image.mode}" if image.mode in {"CMYK", "LAB", "HSV"} else ""
    return np.asarray(image.convert("RGB")), note


def _oriented(image: Image.Image) -> str:
    turned = image.getexif().get(_ORIENTATION, 1)
    return "EXIF orientation is not applied" if turned not in (0, 1) else ""


def _is_picture(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and Path(name).suffix.lower() in SUFFIXES


def _listed(paths: list[Path]) -> PictureList:
    names = [path.as_posix() for path in paths]
    if not names:
        raise RequestError("an empty list of pictures; at least 1 is needed")
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise RequestError(f"{twice[0]!r} is in the list of pictures {names.count(twice[0])} times; name it once")
    return PictureList(tuple(Source(path.as_posix(), path.read_bytes) for path in sorted(paths, key=Path.as_posix)))


def _zipped(path: Path) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and _is_picture(entry.filename)]
    except (zipfile.BadZipFile, OSError) as error:
        raise RequestError(f"{str(path)!r}: no readable zip archive ({error})") from None
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise RequestError(f"{str(path)!r}: two entries of the same name; pack it again")
    return [Source(entry.filename, partial(_unzipped, path, entry.filename)) for entry in entries]


def _unzipped(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(name).file_size > MAX_ENTRY_BYTES:
                raise Unreadable("is larger than 1 GiB unpacked")
            return archive.read(name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise Unreadable(f"is damaged in the archive: {re.sub(chr(10), ' ', str(error))}") from None
