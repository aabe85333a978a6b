"""`mezzotint vary`: pictures like a given one, with an unCLIP model."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.options import Device, Dtype, Json, Output, Weights, picture_options
from mezzotint.cli.pictures import Source, make


@picture_options("image", "mask", "strength", "start", "resize", "feather", "paste")
def vary(
    reference: Annotated[Path, typer.Argument(help="The picture to vary.")],
    prompt: Annotated[str, typer.Argument(help="What the results also show.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="An unCLIP checkpoint: folder, file or ORG/NAME.")] = ...,  # pyright: ignore[reportArgumentType]  # typer's mark of a required option
    output: Output = Path("outputs"),
    unclip_stats: Annotated[Path | None, typer.Option(help="Statistics of image embeddings, for -l files.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    weights: Weights = "auto",
    json: Json = False,
    **fields: object,
) -> None:
    """Make pictures like a given one, and like a prompt if there is one (needs a Stable Diffusion unCLIP model).

    Example: mezzotint vary photo.png -m unclip --steps 4 --count 2
    """
    source = Source(path=model, dtype=dtype, device=device, weights=weights, unclip_stats=unclip_stats)
    make(source, [{**fields, "reference": reference, "prompt": prompt}], output, is_json=json)
