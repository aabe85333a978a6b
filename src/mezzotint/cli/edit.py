"""`mezzotint edit`: a picture, or the masked part of one, made again from a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.options import Json, Output, picture_options, source_options
from mezzotint.cli.pictures import make
from mezzotint.pipeline.source import Source


@picture_options("reference", "reference_crop", "reference_noise")
@source_options()
def edit(
    image: Annotated[Path, typer.Argument(help="The picture to start from.")],
    prompt: Annotated[str, typer.Argument(help="What the result shows.")],
    *,
    source: Source,
    output: Output = Path("outputs"),
    json: Json = False,
    **fields: object,
) -> None:
    """Make a picture again from a prompt; with --mask only its bright part, and every other pixel stays as it was.

    Example: mezzotint edit photo.png "a blue heart" -m model --mask mask.png --steps 4
    """
    make(source, [{**fields, "image": image, "prompt": prompt}], output, is_json=json)
