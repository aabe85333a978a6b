"""X/Y grids: one request, two of its fields varied, every combination drawn on one labelled sheet. No torch.

An axis is written FIELD=VALUES. Values are a comma-separated list, with double quotes around one that has a comma;
for numbers also `1-5`, `1-10 (+3)` and `0-1 [5]` (five values, both ends), as in the AUTOMATIC1111 web UI. `prompt`
searches and replaces: every value takes the place of the first one in the prompt and in the negative. A word that is
no field is an option of the sampler (`eta=0,0.5,1`), `size=64x96,96x64` sets width and height, `model` the checkpoint.
"""

import csv
import itertools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args, get_origin  # Any: fields of Request, which validates them

from PIL import Image, ImageDraw, ImageFont

from mezzotint.errors import RequestError, unknown
from mezzotint.images import SCHEMA
from mezzotint.names import SAMPLERS
from mezzotint.pipeline.request import DRAWN_SEEDS, ImageRef, Request

MAX_CELLS = 1024

_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*-\s*(-?\d+(?:\.\d+)?)\s*(?:\(\s*([+-]?\d+(?:\.\d+)?)\s*\)|\[\s*(\d+)\s*\])?")
_PAPER, _INK, _FAINT = (250, 248, 244), (28, 26, 24), (140, 134, 126)
_PAD, _TEXT, _LINE = 8, 14, 18


class Axis(NamedTuple):
    """A field and the values that it takes, as text that labels show and as what the field is given."""

    field: str
    texts: tuple[str, ...]
    values: tuple[object, ...]

    def label(self, i: int) -> str:
        """What stands beside row or above column i."""
        return self.texts[i] if self.field == "prompt" else f"{self.field} {self.texts[i]}"


class Cell(NamedTuple):
    """One picture of the grid; `model` is None where it is no axis."""

    row: int
    column: int
    request: Request
    model: str | None


class Box(NamedTuple):
    """Where a picture lies on the sheet, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Every request of a grid, checked; row by row. All share one seed unless it is an axis."""

    x: Axis | None
    y: Axis | None
    cells: Sequence[Cell]

    @property
    def columns(self) -> int:
        """Pictures in a row."""
        return len(self.x.values) if self.x else 1

    @property
    def rows(self) -> int:
        """Rows of pictures."""
        return len(self.y.values) if self.y else 1


def axis(text: str) -> Axis:
    """The axis that `FIELD=VALUES` describes.

    Raises: RequestError for a field that cannot be varied or values that it cannot take.
    """
    field, equals, values = text.partition("=")
    field = field.strip()
    if not equals or not values.strip():
        raise RequestError(f"axis {text!r}: must be FIELD=VALUES, for example steps=4,8,16")
    _kind(field)
    items = next(csv.reader([values], skipinitialspace=True))
    texts = [part for item in items if item.strip() for part in _expanded(field, item.strip())]
    if not texts:
        raise RequestError(f"axis {text!r}: names no value; for example steps=4,8,16")
    return Axis(field, tuple(texts), tuple(_value(field, part) for part in texts))


def plan(fields: Mapping[str, Any], x: Axis | None, y: Axis | None) -> Grid:
    """The requests of a grid: `fields` of Request, varied along both axes. A seed that is not given is drawn once.

    Raises: RequestError if a cell cannot be asked for, saying which; if both axes vary one field; if none is given.
    """
    axes = [one for one in (x, y) if one]
    if not axes:
        raise RequestError("a grid needs an axis: give --x FIELD=VALUES, --y FIELD=VALUES or both")
    if x and y and x.field == y.field and x.field != "prompt":
        raise RequestError(f"both axes vary {x.field}; give each its own field")
    if {one.field for one in axes} & {"width", "height"} and "size" in {one.field for one in axes}:
        raise RequestError("size is width and height: one axis would undo the other; vary width and height, or size")
    if fields.get("count", 1) != 1:
        raise RequestError("count: a grid has one picture in a cell; vary the seed instead, for example --y seed=1-4")
    if (n := (len(x.values) if x else 1) * (len(y.values) if y else 1)) > MAX_CELLS:
        raise RequestError(f"{n} cells: a grid has at most {MAX_CELLS}; leave out some values")
    base = dict(fields)
    if base.get("seed") is None:
        base["seed"] = secrets.randbelow(DRAWN_SEEDS)
    for one in axes:
        if one.field == "prompt" and one.texts[0] not in f"{base.get('prompt', '')}\n{base.get('negative') or ''}":
            raise RequestError(
                f"axis prompt: {one.texts[0]!r} stands neither in the prompt nor in the negative, "
                "so nothing can take its place; begin with words of the prompt"
            )
    places = itertools.product(range(len(y.values) if y else 1), range(len(x.values) if x else 1))
    return Grid(x=x, y=y, cells=[_cell(base, x, y, row, column) for row, column in places])


def _cell(base: Mapping[str, Any], x: Axis | None, y: Axis | None, row: int, column: int) -> Cell:
    wish: dict[str, Any] = dict(base)  # Any: fields of Request, which validates them
    chosen = [(one, i) for one, i in ((x, column), (y, row)) if one]
    # the sampler before its options, whichever axis it is on
    for one, i in sorted(chosen, key=lambda pair: pair[0].field not in Request.model_fields):
        _set(wish, one, i)
    model = wish.pop("model", None)
    try:
        return Cell(row, column, Request(**wish), model)
    except RequestError as error:
        raise RequestError(f"cell ({', '.join(one.label(i) for one, i in chosen)}): {error}") from None


def _set(wish: dict[str, Any], one: Axis, i: int) -> None:
    """Give the field of an axis its value i."""
    value = one.values[i]
    if one.field == "prompt":
        for key in ("prompt", "negative"):
            if wish.get(key):
                wish[key] = wish[key].replace(one.texts[0], one.texts[i])
    elif one.field == "size" and isinstance(value, tuple):
        wish["width"], wish["height"] = value
    elif one.field in Request.model_fields or one.field == "model":
        wish[one.field] = value
    else:
        wish["options"] = {**wish.get("options", {}), one.field: value}


def sheet(grid: Grid, images: Sequence[Image.Image], title: str = "") -> tuple[Image.Image, list[Box]]:
    """The pictures on paper, labels above columns and beside rows; and where each lies, in the order of the cells.

    Pictures are not scaled: the pixels in a box are those of the picture.
    """
    font = ImageFont.load_default(_TEXT)
    tops = [grid.x.label(i) for i in range(grid.columns)] if grid.x else []
    sides = [grid.y.label(i) for i in range(grid.rows)] if grid.y else []
    widths = [max(image.width for image in images[i :: grid.columns]) for i in range(grid.columns)]
    heights = [
        max(image.height for image in images[i * grid.columns : (i + 1) * grid.columns]) for i in range(grid.rows)
    ]
    margin = min(240, max((int(font.getlength(label)) for label in sides), default=-_PAD)) + _PAD
    wrapped = [_wrapped(label, font, width) for label, width in zip(tops, widths, strict=False)]
    whole = margin + sum(widths) + _PAD * (len(widths) + 1)
    heading = _wrapped(title, font, whole - 2 * _PAD) if title else []
    above = len(heading) * _LINE + (_PAD if heading else 0)
    head = _PAD + above + max((len(lines) for lines in wrapped), default=0) * _LINE + (_PAD if wrapped else 0)
    paper = Image.new("RGB", (whole, head + sum(heights) + _PAD * len(heights)), _PAPER)
    pen = ImageDraw.Draw(paper)
    for i, line in enumerate(heading):
        pen.text((_PAD, _PAD + i * _LINE), line, _FAINT, font)
    lefts = [margin + _PAD * (i + 1) + sum(widths[:i]) for i in range(grid.columns)]
    starts = [head + _PAD * i + sum(heights[:i]) for i in range(grid.rows)]
    for left, lines in zip(lefts, wrapped, strict=False):
        for i, line in enumerate(lines):
            pen.text((left, _PAD + above + i * _LINE), line, _INK, font)
    for start, label in zip(starts, sides, strict=False):
        for i, line in enumerate(_wrapped(label, font, margin)):
            pen.text((_PAD, start + i * _LINE), line, _INK, font)
    boxes: list[Box] = []
    for cell, image in zip(grid.cells, images, strict=True):
        left, top = lefts[cell.column], starts[cell.row]
        paper.paste(image.convert("RGB"), (left, top))
        boxes.append(Box(left, top, image.width, image.height))
    return paper, boxes


def record(grid: Grid, records: Sequence[Mapping[str, Any]], boxes: Sequence[Box]) -> dict[str, Any]:
    """The `mezzotint` chunk of a sheet: axes, and for every cell its place and what made it. What cells share is once.

    `records` are the cells' own chunks. A cell is made again with the request that it holds.
    """
    first = records[0]
    return {
        "schema": SCHEMA,
        "grid": {
            name: {"field": one.field, "values": list(one.texts)} if one else None
            for name, one in (("x", grid.x), ("y", grid.y))
        },
        "model": first["model"],
        "execution": first["execution"],
        "cells": [
            {
                "row": cell.row,
                "column": cell.column,
                "box": list(box),
                **found["resolved"],
                "approximated": found["approximated"],
                **{what: found[what] for what in ("model", "execution") if found[what] != first[what]},
            }
            for cell, box, found in zip(grid.cells, boxes, records, strict=True)
        ],
        "warnings": list(dict.fromkeys(line for found in records for line in found["warnings"])),
    }


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines that fit; a word longer than a line is broken, so nothing of a label is lost."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _kind(field: str) -> Any:  # Any: a type, or one of typing's forms
    """What values of the field are: a type; None for an option of some sampler, whose type the value tells."""
    if field == "model":
        return str
    if field == "size":
        return tuple[int, int]
    known = Request.model_fields.get(field)
    options = {name for info in SAMPLERS.values() for name in info.options}
    if known is None and field in options:
        return None
    fixed = {"count", "options"} | {name for name, one in Request.model_fields.items() if ImageRef in _parts(one)}
    if known is None or field in fixed:
        raise RequestError(f"axis: {unknown('field', field, ({*Request.model_fields} - fixed) | {'model', 'size'})}")
    return next((kind for kind in _parts(known) if kind is not type(None)), str)


def _parts(field: Any) -> tuple[Any, ...]:  # Any: pydantic's FieldInfo, whose annotation is any type
    annotation = field.annotation
    is_union = type(None) in get_args(annotation)
    return get_args(annotation) if is_union else (annotation,)


def _expanded(field: str, item: str) -> list[str]:
    """The values that a range stands for; anything else is itself."""
    kind = _kind(field)
    if kind not in (int, float) or not (found := _RANGE.fullmatch(item)):
        return [item]
    low, high = float(found[1]), float(found[2])
    if found[4]:
        n = _few(field, item, int(found[4]))
        values = [low + (high - low) * i / max(1, n - 1) for i in range(n)]
        return [_number(round(value) if kind is int else value) for value in values]
    step = float(found[3] or (1 if high >= low else -1))
    if step == 0 or (high - low) * step < 0:
        raise RequestError(f"axis {field}: {item!r} never reaches its end; turn the sign of ({found[3]})")
    n = _few(field, item, int((high - low) / step + 1e-9) + 1)
    return [_number(low + i * step) for i in range(n)]


def _few(field: str, item: str, n: int) -> int:
    """n, the values that a range stands for, if they are not too many."""
    if n > MAX_CELLS:
        raise RequestError(f"axis {field}: {item!r} is {n} values; a grid has at most {MAX_CELLS} cells")
    return n


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _value(field: str, text: str) -> object:
    """The text as what the field takes; what is wrong with it, Request says."""
    kind = _kind(field)
    if get_origin(kind) is tuple:
        parts = text.lower().replace(" ", "").split("x")
        try:
            first, second = (get_args(kind)[0](part) for part in parts)
            return first, second
        except ValueError:
            raise RequestError(f"axis {field}: {text!r} must be two numbers, for example 512x768") from None
    if kind is None or kind in (int, float, bool):
        if text.lower() in {"true", "false"}:
            return text.lower() == "true"
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text
