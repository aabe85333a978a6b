"""`mezzotint edit`: a picture, or the masked part of one, made again from a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.options import Device, Dtype, Json, Model, Objective, Output, Preset, Vae, Weights, picture_options
from mezzotint.cli.pictures import Source, make


@picture_options("reference", "reference_crop", "reference_noise")
def edit(
    image: Annotated[Path, typer.Argument(help="The picture to start from.")],
    prompt: Annotated[str, typer.Argument(help="What the result shows.")],
    model: Model = "icons",
    output: Output = Path("outputs"),
    dtype: Dtype = "auto",
    device: Device = "auto",
    weights: Weights = "auto",
    preset: Preset = None,
    objective: Objective = None,
    vae: Vae = None,
    json: Json = False,
    **fields: object,
) -> None:
    """Make a picture again from a prompt; with --mask only its bright part, and every other pixel stays as it was.

    Example: mezzotint edit photo.png "a blue heart" -m model --mask mask.png --steps 4
    """
    source = Source(
        path=model, dtype=dtype, device=device, weights=weights, preset=preset, objective=objective, vae=vae
    )
    make(source, [{**fields, "image": image, "prompt": prompt}], output, is_json=json)
