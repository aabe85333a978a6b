"""One captioned picture, however it is stored: its name, captions, other columns, and how its bytes are read. No torch.

Pillow raises nearly anything for damaged files; here that becomes one error, `DamagedPicture`, which callers log with
the picture's key and go on.
"""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from mezzotint.errors import MezzotintError
from mezzotint.images import MAX_PIXELS

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_CAPTIONS = ("captions", "caption", "text")  # the first that a row has, in any case: LAION writes TEXT
_ORIENTATION, _TURNED = 0x0112, {5, 6, 7, 8}  # EXIF values whose width and height change places
_NONE: Mapping[str, float] = MappingProxyType({})


class DamagedPicture(MezzotintError):
    """Bytes that cannot be had or are no picture."""


class Size(NamedTuple):
    """Pixels across and down."""

    width: int
    height: int


class Picture(NamedTuple):
    """One sample: its name, what can be said about it, its other columns, and its encoded bytes."""

    key: str
    captions: tuple[str, ...]
    columns: Mapping[str, str]
    read: Callable[[], bytes]
    numbers: Mapping[str, float] = _NONE  # columns that are numbers: scores, probabilities, sizes


def picture_of(row: Mapping[str, Any], key: str, read: Callable[[], bytes]) -> Picture:  # Any: JSON or parquet values
    """A row of a table as a picture; its own column `key` wins over `key`."""
    folded = {name.lower(): value for name, value in row.items()}
    said = next((folded[name] for name in _CAPTIONS if folded.get(name)), ())
    captions = (said,) if isinstance(said, str) else tuple(said)
    texts = {n: v for n, v in row.items() if isinstance(v, str) and n.lower() not in _CAPTIONS}
    numbers = {n: float(v) for n, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return Picture(str(row.get("key", key)), captions, texts, read, numbers)


def opened(picture: Picture) -> Image.Image:
    """The picture decoded: upright, on white, RGB.

    Raises: DamagedPicture.
    """
    return upright(_bytes(picture))


def size_of(picture: Picture) -> Size:
    """Its size when upright, from the file's header alone.

    Raises: DamagedPicture.
    """
    data = _bytes(picture)
    try:
        with Image.open(io.BytesIO(data)) as header:
            is_turned = header.getexif().get(_ORIENTATION) in _TURNED
            return Size(header.height, header.width) if is_turned else Size(header.width, header.height)
    except Exception as error:  # whatever Pillow raises for damaged files
        raise DamagedPicture(f"no picture ({error})") from None


def upright(data: bytes) -> Image.Image:
    """The encoded picture with its EXIF orientation applied, transparent parts white, RGB.

    Raises: DamagedPicture if it cannot be decoded or has more than 2^26 pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DamagedPicture(f"{file.width}x{file.height} pixels; at most {MAX_PIXELS} are accepted")
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except DamagedPicture:
        raise
    except Exception as error:  # whatever Pillow raises for damaged files
        raise DamagedPicture(f"no picture ({error})") from None
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    return flat.convert("RGB")


def _bytes(picture: Picture) -> bytes:
    try:
        return picture.read()
    except (OSError, ValueError) as error:
        raise DamagedPicture(f"cannot be read ({error})") from None
