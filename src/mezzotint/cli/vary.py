"""`mezzotint vary`: pictures like a given one, with an unCLIP model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.options import Json, Output, picture_options, source_options
from mezzotint.cli.pictures import make
from mezzotint.pipeline.source import Source


@picture_options("image", "mask", "strength", "start", "resize", "feather", "paste")
@source_options()
def vary(
    reference: Annotated[Path, typer.Argument(help="The picture to vary.")],
    prompt: Annotated[str, typer.Argument(help="What the results also show.")] = "",
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="An unCLIP checkpoint: folder, file or ORG/NAME.")],
    source: Source,
    output: Output = Path("outputs"),
    json: Json = False,
    **fields: object,
) -> None:
    """Make pictures like a given one, and like a prompt if there is one (needs a Stable Diffusion unCLIP model).

    Example: mezzotint vary photo.png -m unclip --steps 4 --count 2
    """
    wish = {**fields, "reference": reference, "prompt": prompt}
    make(replace(source, model=model), [wish], output, is_json=json)
