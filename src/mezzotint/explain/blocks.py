"""What a story is made of: sections of blocks, plain data that page, JSON and notebook share.

Each function here makes one kind of block; `web/story.js` has a function of the same name that draws it. Pictures
are data URIs, maps are bytes in base64 with the range that 0 … 255 stand for: a page needs nothing from outside.
"""

import base64
import inspect
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Block = dict[str, Any]  # Any: JSON, whatever the kind of block holds
R = TypeVar("R")
Telling = Generator[None, None, R]
"""Yields now and then, returns the result; closing it stops there. A server gives each piece a turn."""

ROOT = Path(__file__).parents[1]
MOST_LINES = 15  # of code that a section quotes
JPEG_ABOVE = 160  # pixels of a side
MOST_SIDE = 512  # pixels of a side of any picture
MOST_DOTS = 64  # of pictures whose dots are places of a latent, where they are shown small
REACH = 3.0  # deviations that pictures of latents reach
HEAT = ((9, 7, 30), (72, 20, 104), (170, 44, 92), (237, 105, 37), (251, 210, 90), (252, 255, 220))
"""Colours of 0 … 1, dark to bright; the page draws maps in the same ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Lines of this package that ran, as they stand in the file."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One step of the story. `formula` is in plain notation, `shapes` name what flows, `ms` is what it took here."""

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]
    formula: str = ""
    shapes: Sequence[str] = ()
    ms: float | None = None
    code: Sequence[Code] = ()

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """As plain data."""
        return asdict(self)


def timed(pieces: Telling[R]) -> Telling[tuple[R, float]]:
    """With the milliseconds that it took, without what others did in between."""
    seconds = 0.0
    while True:
        begun = perf_counter()
        try:
            next(pieces)
        except StopIteration as ended:
            return ended.value, round(1000 * (seconds + perf_counter() - begun), 1)
        seconds += perf_counter() - begun
        yield


def sizes(values: Tensor) -> str:
    """The sizes of a tensor, as the page writes them."""
    return f"[{' '.join(map(str, values.shape))}]"


def code_of(function: Callable[..., object], begins: str = "", most: int = MOST_LINES) -> Code:
    """Lines of a function or class: from the first that contains `begins`, else from its head without the docstring.

    Raises: ValueError if no line contains it.
    """
    function = inspect.unwrap(getattr(function, "func", function))  # of a partial, behind decorators
    lines, first = inspect.getsourcelines(function)
    file = Path(inspect.getsourcefile(function) or "")
    start = next((i for i, line in enumerate(lines) if begins in line), -1) if begins else 0
    if start < 0:
        raise ValueError(f"{function.__name__}: no line contains {begins!r}")
    kept = lines[start:]
    if not begins and (doc := function.__doc__):
        opened = next((i for i, line in enumerate(lines) if '"""' in line), 0)
        kept = [*lines[:opened], *lines[opened + 1 + doc.count("\n") :]]
    text = inspect.cleandoc("\n" + "".join(kept[:most]))
    return Code(file=f"src/mezzotint/{file.relative_to(ROOT).as_posix()}", line=first + start, text=text)


def text(said: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "text": said}


def pictures(items: Sequence[Block], title: str = "", *, side: int = 128) -> Block:
    """Pictures in a row, each made by `picture`; `side` is how large they are shown, in CSS pixels."""
    return {"kind": "pictures", "title": title, "items": list(items), "side": side}


def picture(image: Image.Image, label: str, note: str = "") -> Block:
    """One of `pictures`."""
    return {"src": uri(image), "label": label, "note": note, "width": image.width, "height": image.height}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> Block:
    """Rows of texts and numbers."""
    return {"kind": "table", "title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Tensor,
    title: str,
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> Block:
    """Numbers as coloured cells; `low` and `high` are the ends of the colours."""
    numbers = [[round(float(value), 3) for value in row] for row in values]
    ends = {"low": round(low, 3), "high": round(high, 3)}
    return {"kind": "matrix", "title": title, "rows": list(rows), "columns": list(columns), "values": numbers, **ends}


def strip(values: Tensor, rows: Sequence[str], title: str, spread: float) -> Block:
    """A heat strip: one line for each row of [rows columns], colours from -spread to spread."""
    return {"kind": "strip", "title": title, "rows": list(rows), **packed(values, -spread, spread)}


def curves(
    lines: Sequence[Block], title: str, x: str, y: str, *, is_log: bool = False, is_chosen: bool = False
) -> Block:
    """Lines, each made by `line`; `is_chosen`: those with dots are looked at one at a time, by a slider."""
    return {"kind": "curves", "title": title, "x": x, "y": y, "log": is_log, "chosen": is_chosen, "lines": list(lines)}


def line(name: str, points: Sequence[tuple[float, float]], *, has_dots: bool = False) -> Block:
    """One of `curves`."""
    return {"name": name, "dots": has_dots, "points": [[float(f"{x:.6g}"), float(f"{y:.6g}")] for x, y in points]}


def histogram(values: Tensor, title: str, *, bins: int = 31, reach: float = 4.0) -> Block:
    """How often values of each size occur, as a density, next to that of a unit Gaussian."""
    counts = torch.histc(values.float().clamp(-reach, reach), bins, -reach, reach)
    density = counts / counts.sum() * (bins / (2 * reach))
    said = f"mean {float(values.mean()):.3f}, deviation {float(values.std()):.3f}, {values.numel():,} numbers"
    return {"kind": "histogram", "title": title, "reach": reach, "note": said, "density": _rounded(density)}


def bars(items: Sequence[tuple[str, float, str]], title: str) -> Block:
    """Lengths: a label, a value, and how the value is written."""
    shown = [{"label": label, "value": float(f"{value:.6g}"), "note": note} for label, value, note in items]
    return {"kind": "bars", "title": title, "items": shown}


def slider(items: Sequence[Block], title: str, what: str) -> Block:
    """Pictures of which one is shown, chosen by a slider; each made by `picture`."""
    return {"kind": "slider", "title": title, "what": what, "items": list(items)}


def packed(values: Tensor, low: float, high: float) -> Block:
    """[… h w] as bytes between two ends."""
    unit = ((values.float() - low) / max(high - low, 1e-12)).clamp(0, 1)
    data = (unit * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
    ends = {"low": float(f"{low:.6g}"), "high": float(f"{high:.6g}")}
    return {"shape": list(values.shape), "data": base64.b64encode(data).decode(), **ends}


def dots(image: Image.Image) -> Image.Image:
    """One in so many places of a picture of a latent: means of neighbours would make noise look like less noise."""
    step = -(-max(image.size) // MOST_DOTS)
    return image.resize((-(-image.width // step), -(-image.height // step)), Image.Resampling.NEAREST)


def uri(image: Image.Image, most: int = MOST_SIDE) -> str:
    """The picture as a data URI: exact when small, JPEG when large; shrunk until no side has more pixels than that."""
    held = io.BytesIO()
    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most))
    if max(image.size) <= JPEG_ABOVE:
        image.save(held, "PNG", optimize=True)
        kind = "png"
    else:
        image.convert("RGB").save(held, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


def heat(values: Tensor, high: float | None = None) -> Image.Image:
    """[h w], 0 and above, as a picture in the colours of HEAT; `high` is the brightest, None the largest value."""
    top = float(values.max()) if high is None else high
    unit = (values.float() / max(top, 1e-12)).clamp(0, 1).numpy() * (len(HEAT) - 1)
    stops: NDArray[np.float64] = np.array(HEAT, np.float64)
    low = np.minimum(unit.astype(np.intp), len(HEAT) - 2)
    part = (unit - low)[..., None]
    mixed = stops[low] * (1 - part) + stops[low + 1] * part
    return Image.fromarray(mixed.round().astype(np.uint8))


def grey(values: Tensor, reach: float = REACH) -> Image.Image:
    """[h w] from -reach to reach as a grey picture."""
    unit = ((values.float() / reach).clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(unit.round().to(torch.uint8).numpy())


def coloured(pixels: Tensor) -> Image.Image:
    """[3 h w] in [-1, 1] as a picture."""
    return unchanged(((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def unchanged(pixels: Tensor) -> Image.Image:
    """[3 h w] of 0 … 255 as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def three(latent: Tensor) -> Image.Image:
    """Three channels of a latent [c h w] as red, green and blue."""
    return coloured((latent[:3] if len(latent) >= 3 else latent[:1].expand(3, -1, -1)) / REACH)


def without_times(data: object) -> object:
    """A story's data without what differs from run to run: milliseconds."""
    if isinstance(data, Mapping):
        items = cast("Mapping[str, object]", data)  # JSON objects have text keys
        return {key: without_times(value) for key, value in items.items() if key != "ms" and not key.endswith("_ms")}
    if isinstance(data, list | tuple):
        return [without_times(value) for value in cast("Sequence[object]", data)]  # JSON
    return data


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
