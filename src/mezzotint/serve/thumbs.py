"""Pictures on their way in and out: small ones for the gallery, given ones decoded and encoded again. No torch."""

import io
from typing import NamedTuple

from PIL import Image, ImageOps

from mezzotint.errors import RequestError
from mezzotint.images import FORMATS, encode, open_image, read_metadata

THUMB = 256  # pixels of the longer side
MAX_SIDE = 8192
MAX_GIVEN_PIXELS = 1 << 24


class Given(NamedTuple):
    """A picture that a client gave, as we keep it: PNG without texts; `alpha` is None where it is opaque."""

    png: bytes
    width: int
    height: int
    alpha: Image.Image | None


def thumbnail(png: bytes) -> bytes:
    """A small WebP without texts."""
    image = open_image(png).convert("RGB")
    image.thumbnail((THUMB, THUMB))
    return _saved(image, "WEBP", quality=80)


def given(data: bytes, name: str = "image") -> Given:
    """A client's picture: decoded within limits, turned upright, encoded again.

    Nothing of the file but its pixels goes on. Raises: RequestError, in our own words.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
            has_alpha = header.mode in {"RGBA", "LA", "PA"} or "transparency" in header.info
    except Exception:
        raise RequestError(f"{name}: not a PNG, JPEG or WebP picture") from None
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_GIVEN_PIXELS:
        raise RequestError(
            f"{name}: {width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_GIVEN_PIXELS} together are accepted"
        )
    try:
        alpha = _alpha(data) if has_alpha else None
        image = open_image(data, name)
    except Exception:
        raise RequestError(f"{name}: the file is damaged") from None
    return Given(encode(image), image.width, image.height, alpha)


def converted(png: bytes, kind: str, *, quality: int = 95, size: tuple[int, int] | None = None) -> bytes:
    """A half-done picture in another format or size; finished ones keep their texts, see `images.encode`."""
    image = open_image(png).convert("RGB")
    if size is not None and image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return _saved(image, kind, quality=quality)


def recoded(png: bytes, kind: str, *, quality: int = 95) -> bytes:
    """One of our pictures as PNG, JPEG or WEBP, with the texts and the mark that it carries."""
    if kind == "PNG":
        return png
    with Image.open(io.BytesIO(png), formats=FORMATS) as opened:
        opened.load()
        infotext = str(opened.info.get("parameters", ""))
        return encode(opened.convert("RGB"), infotext, read_metadata(png).record, kind, quality=quality)


def _alpha(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
