"""`mezzotint grid`: one request with two of its fields varied, as one labelled picture."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mezzotint.cli.console import print_json, stderr, stdout
from mezzotint.cli.options import Json, Output, picture_options, source_options
from mezzotint.cli.pictures import run, tell
from mezzotint.images import check_folder, encode, read_infotext, write_file, write_infotext
from mezzotint.pipeline import grid as grids
from mezzotint.pipeline.source import Source

if TYPE_CHECKING:
    from mezzotint.pipeline.generate import Result

_AXIS = "FIELD=VALUES: steps=4,8,16; seed=1-4; guidance=1-9 (+2); sampler=euler,dpmpp_2m; prompt=red,blue; eta=0,1."


@picture_options("count")
@source_options()
def grid(
    prompt: Annotated[str, typer.Argument(help="What the pictures show.")],
    x: Annotated[str | None, typer.Option("--x", help=f"What varies along a row, {_AXIS}")] = None,
    y: Annotated[str | None, typer.Option("--y", help="What varies from row to row, written like --x.")] = None,
    *,
    source: Source,
    output: Output = Path("outputs"),
    cells: Annotated[bool, typer.Option("--cells", help="Also write every cell as a picture of its own.")] = False,
    json: Json = False,
    **fields: object,
) -> None:
    """Compare settings side by side: every combination of two lists of values, as one labelled PNG.

    Each cell is the picture that the same request gives alone. `prompt` searches and replaces: each value takes the
    place of the first.

    Example: mezzotint grid "a red heart" -m model --x steps=2,4 --y "prompt=red,blue" --seed 1
    """
    x_axis, y_axis = (grids.axis(text) if text else None for text in (x, y))
    planned = grids.plan({**fields, "prompt": prompt, "model": source.model}, x_axis, y_axis)
    check_folder(output)
    made = _made(source, planned)
    images = [result.images[0] for result in made]
    paper, boxes = grids.sheet(planned, images, prompt)
    taken = [int(path.stem[5:]) for path in output.glob("grid-*.png") if path.stem[5:].isdigit()]
    path = output / f"grid-{max(taken, default=0) + 1:05}.png"
    record = grids.record(planned, [result.metadata[0] for result in made], boxes)
    write_file(path, encode(paper, _infotext(planned, made[0].infotexts[0]), record))
    saved = [result.save(output)[0] for result in made] if cells else []
    tell(made)
    if json:
        print_json(
            {
                "path": str(path),
                "cells": [
                    {
                        "row": cell.row,
                        "column": cell.column,
                        "box": list(box),
                        "seed": result.seeds[0],
                        "path": str(saved[i]) if saved else None,
                    }
                    for i, (cell, box, result) in enumerate(zip(planned.cells, boxes, made, strict=True))
                ],
            }
        )
        return
    for written in (path, *saved):
        stdout.print(str(written), soft_wrap=True, markup=False)


def _made(source: Source, planned: grids.Grid) -> "list[Result]":
    """A result for every cell, in their order; each model is loaded once."""
    found: dict[int, Result] = {}
    models = dict.fromkeys(cell.model or source.model for cell in planned.cells)
    for name in models:
        system = replace(source, model=name).load()
        for i, cell in enumerate(planned.cells):
            if (cell.model or source.model) == name:
                stderr.print(_said(planned, cell, len(found) + 1), markup=False, soft_wrap=True)
                found[i] = run(system, cell.request)
    return [found[i] for i in range(len(planned.cells))]


def _said(planned: grids.Grid, cell: grids.Cell, number: int) -> str:
    places: Iterable[tuple[grids.Axis | None, int]] = ((planned.x, cell.column), (planned.y, cell.row))
    labels = ", ".join(axis.label(i) for axis, i in places if axis)
    return f"{number} of {len(planned.cells)}: {labels}"


def _infotext(planned: grids.Grid, first: str) -> str:
    """The first cell's `parameters`, and the axes under the names that the AUTOMATIC1111 web UI gives them."""
    told = read_infotext(first)
    axes: dict[str, object] = {"Script": "X/Y/Z plot"}
    for letter, axis in (("X", planned.x), ("Y", planned.y)):
        if axis:
            axes |= {f"{letter} Type": axis.field, f"{letter} Values": ", ".join(axis.texts)}
    version = told.items.pop("Version", None)
    return write_infotext(told.prompt, told.negative, told.items | axes | {"Version": version})
