"""Pictures as files and arrays: decoding, fitting, masks, and the texts that a picture carries. No torch.

Two texts travel with a picture: `parameters`, the line format of the AUTOMATIC1111 web UI that other programs read, and
`mezzotint`, a JSON object that holds everything needed to make the picture again. PNG stores them as text chunks,
JPEG and WebP in EXIF. Beside them stands a mark, in XMP, that the picture was made by a trained model, unless its
request says `mark: false`. `uint8` exists only in this file; everywhere else an image is float32 in [-1, 1].

Source: grammar of `parameters`: `create_infotext` and `parse_generation_parameters` of the web UI; the mark: IPTC Photo
Metadata Standard, Digital Source Type.
"""

import io
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from mezzotint.errors import RequestError
from mezzotint.storage import atomic

SCHEMA = 1
_OBJECTS = (("resolved", "request"), ("model", "unet"), ("execution",))  # of a record, where there are any
MAX_PIXELS = 1 << 26
FORMATS = ("PNG", "JPEG", "WEBP")
Resize = Literal["stretch", "crop", "pad"]

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE, EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_XMP_KEY = "XML:com.adobe.xmp"  # of PNG; the other formats have a place of their own
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType="{source}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_SOURCE_TYPE = re.compile(r"DigitalSourceType(?:=\"|>)\s*" + re.escape(SOURCE_TYPES) + r"(\w+)")

_EXIF_IFD, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_ITEM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_LEAST_ITEMS = 3  # a last line with fewer items belongs to the prompt


class Infotext(NamedTuple):
    """A `parameters` text taken apart; values of `items` are text, as written."""

    prompt: str
    negative: str
    items: dict[str, str]


class Metadata(NamedTuple):
    """The texts that a picture carries; None where it has none or they cannot be read."""

    infotext: Infotext | None
    record: dict[str, Any] | None  # Any: JSON of schema 1, validated by who uses it


def open_image(source: Path | bytes, name: str = "image") -> Image.Image:
    """The decoded picture, upright (EXIF orientation applied) and RGB or L; alpha is dropped.

    Raises: RequestError if it is no PNG, JPEG or WebP, is damaged, or has more than 2^26 pixels.
    """
    where = f"{name} {str(source)!r}" if isinstance(source, Path) else name
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise RequestError(f"{where}: {width}x{height} pixels; at most {MAX_PIXELS} are accepted")
            upright = ImageOps.exif_transpose(opened)
            return upright.convert("L" if upright.mode in {"L", "1", "I;16", "LA"} else "RGB")
    except FileNotFoundError:
        raise RequestError(f"{where}: no such file") from None
    except UnidentifiedImageError:
        raise RequestError(f"{where}: not a PNG, JPEG or WebP picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{where}: cannot be decoded ({error})") from None


def fitted(image: Image.Image, width: int, height: int, how: Resize = "stretch") -> Image.Image:
    """The picture at width x height: stretched, cropped about its centre, or padded with its own edge pixels."""
    if image.size == (width, height):
        return image
    if how == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if how == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    inner = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    edges = ((top, height - inner.height - top), (left, width - inner.width - left), (0, 0))
    return Image.fromarray(np.pad(np.asarray(inner), edges[: np.asarray(inner).ndim], mode="edge"))


def to_array(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:  # Any: numpy's shape parameter
    """Float32 [c h w] in [-1, 1]; c is 3."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32) / 255.0
    return 2.0 * pixels.transpose(2, 0, 1) - 1.0


def to_image(array: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:  # Any: numpy's shape parameter
    """The picture of float32 [3 h w] in [-1, 1]; values outside are clipped, the rest rounded to 1/255."""
    unit = np.clip(array / 2 + 0.5, 0.0, 1.0)
    return Image.fromarray((unit * 255).round().astype(np.uint8).transpose(1, 2, 0))


def to_mask(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:  # Any: numpy's shape parameter
    """Float32 [h w], 1 where the picture is to be made again (brighter than middle grey), 0 where it is kept."""
    return (np.asarray(image.convert("L")).astype(np.float32) / 255.0 >= 0.5).astype(np.float32)


def feathered(mask: np.ndarray[Any, np.dtype[np.float32]], pixels: int) -> Image.Image:  # Any: shape parameter
    """The mask as an L picture that is 255 inside, falls off over `2 * pixels` outside, and is 0 beyond."""
    hard = Image.fromarray((mask * 255).astype(np.uint8))
    if not pixels:
        return hard
    return hard.filter(ImageFilter.MaxFilter(2 * pixels + 1)).filter(ImageFilter.BoxBlur(pixels))


def pasted(original: Image.Image, made: Image.Image, mask: Image.Image) -> Image.Image:
    """`made` where the mask is 255, `original` bit for bit where it is 0, and a mixture between."""
    return Image.composite(made, original.convert("RGB"), mask)


def write_infotext(prompt: str, negative: str, items: Mapping[str, object]) -> str:
    """The `parameters` text; items that are None are left out, the rest are written in their order.

    A text for an empty prompt starts with a line feed: some readers take everything for the prompt otherwise.
    """
    lines = [_lines(prompt)]
    if negative:
        lines.append("Negative prompt: " + _lines(negative))
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in items.items() if value is not None))
    return "\n".join(lines)


def read_infotext(text: str) -> Infotext:
    """Prompt, negative and items of a `parameters` text, by the rules of the web UI that wrote it first."""
    lines = text.strip().split("\n")
    items: dict[str, str] = {}
    if len(found := _ITEM.findall(lines[-1])) >= _LEAST_ITEMS:
        lines.pop()
        items = {key: _unquoted(value) for key, value in found}
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part, line = negative, line.removeprefix("Negative prompt:").strip()
        part.append(line)
    return Infotext("\n".join(prompt).strip(), "\n".join(negative).strip(), items)


def encode(
    image: Image.Image,
    infotext: str = "",
    record: Mapping[str, object] | None = None,
    kind: str = "PNG",
    *,
    quality: int = 95,
) -> bytes:
    """The bytes of a picture file of one of FORMATS that carries both texts, and the mark that the record asks for."""
    mark = _mark(record) if record else ""
    texts = {"parameters": infotext, "mezzotint": json.dumps(record, ensure_ascii=False) if record else ""}
    out = io.BytesIO()
    if kind == "PNG":
        chunks = PngInfo()
        for key, text in texts.items():
            if text:
                chunks.add_text(key, text)
        if mark:
            chunks.add_itxt(_XMP_KEY, mark)
        image.save(out, kind, pnginfo=chunks)
    else:
        exif = Image.Exif()
        if infotext:  # big-endian, whatever the byte order of the EXIF block: what readers expect
            exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + infotext.encode("utf-16-be")
        if record:  # escaped: this tag is ASCII
            exif[_DESCRIPTION] = json.dumps(record)
        image.save(out, kind, quality=quality, exif=exif, xmp=mark.encode())
    return out.getvalue()


def source_type(source: Path | bytes) -> str | None:
    """The IPTC digital source type that a picture file is marked with, without its address: `MADE`, `EDITED` or others.

    Raises: RequestError if the file is no picture.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            image.load()  # PNG texts may follow the pixels
            told = image.info.get(_XMP_KEY) or image.info.get("xmp") or b""
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"{_where(source)}: no readable PNG, JPEG or WebP picture ({error})") from None
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    found = _SOURCE_TYPE.search(text)
    return found[1] if found else None


def read_metadata(source: Path | bytes) -> Metadata:
    """The texts that a PNG, JPEG or WebP carries. Unknown keys are ignored; foreign JSON gives None.

    Raises: RequestError if the file is no picture, or was written by a later version (a higher schema).
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            image.load()  # PNG texts may follow the pixels
            info = dict[Any, Any](image.info)  # Any: whatever the file says
            parameters, record = info.get("parameters"), info.get("mezzotint")
            exif = image.getexif()
            comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
            if parameters is None and isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
                parameters = comment[8:].decode("utf-16-be", errors="replace")
            if record is None:
                record = exif.get(_DESCRIPTION)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"{_where(source)}: no readable PNG, JPEG or WebP picture ({error})") from None
    infotext = read_infotext(parameters) if isinstance(parameters, str) and not parameters.startswith("{") else None
    return Metadata(infotext, _record(record, _where(source)))


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all; an existing file is replaced in one step.

    Raises: RequestError naming the path if it cannot be written.
    """
    try:
        with atomic(path) as file:
            file.write(data)
    except OSError as error:
        raise RequestError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def check_folder(folder: Path) -> None:
    """Make the folder if need be, and see that files can be put there: asked before hours of work, not after.

    Raises: RequestError naming the folder.
    """
    probe = folder / f".mezzotint-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise RequestError(f"folder {str(folder)!r} cannot be written to: {error.strerror or error}") from None


def _mark(record: Mapping[str, Any]) -> str:  # Any: JSON
    """The XMP of a picture with this record, or of a sheet of several; empty if none of its requests wants one."""
    requests = [made.get("request", {}) for made in record.get("cells", [record.get("resolved", {})])]
    if not any(request.get("mark", True) for request in requests):
        return ""
    is_edited = any(request.get("image") for request in requests)
    return _XMP.format(source=SOURCE_TYPES + (EDITED if is_edited else MADE))


def _where(source: Path | bytes) -> str:
    return repr(str(source)) if isinstance(source, Path) else "picture"


def _record(text: object, where: str) -> dict[str, Any] | None:  # Any: JSON
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    schema = record.get("schema")
    if not isinstance(schema, int):
        return None
    if schema > SCHEMA:
        raise RequestError(
            f"{where}: metadata of schema {schema}; this version reads up to {SCHEMA}; upgrade mezzotint to read it"
        )
    return record if all(_is_object(record, path) for path in _OBJECTS) else None


def _is_object(record: dict[str, Any], path: tuple[str, ...]) -> bool:  # Any: JSON
    """Whether there is an object at the end of a path of keys, or nothing."""
    first, *rest = path
    found = record.get(first, {})
    if not isinstance(found, dict):
        return False
    return not rest or _is_object(cast(dict[str, Any], found), tuple(rest))  # Any: JSON


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))


def _quoted(value: object) -> str:
    text = f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',:\n"') else text


def _unquoted(text: str) -> str:
    if text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            return text
    return text.strip()
