"""`mezzotint inspect`: what a model file, folder or picture is, and which key decided."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import print_json, stdout
from mezzotint.cli.options import Json
from mezzotint.images import read_metadata

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def inspect(
    path: Annotated[Path, typer.Argument(help="Model file, model folder, or picture.")],
    json: Json = False,
) -> None:
    """Tell what a model is (family, objective, parts, what is missing) and why, or how a picture was made.

    Example: mezzotint inspect model

    Example: mezzotint inspect picture.png --json
    """
    if path.suffix.lower() in PICTURES:
        metadata = read_metadata(path)
        told = metadata.infotext._asdict() if metadata.infotext else None
        print_json({"parameters": told, "mezzotint": metadata.record})
        return
    from mezzotint.checkpoints.checkpoint import recognised
    from mezzotint.checkpoints.detect import detect
    from mezzotint.checkpoints.detection import describe, lines
    from mezzotint.checkpoints.files import read_header
    from mezzotint.checkpoints.quarantine import is_pickle, to_safetensors

    if path.is_file() and is_pickle(path):
        path = to_safetensors(path)
    header = read_header(path) if path.is_file() and path.suffix == ".safetensors" else None
    detection = recognised(header) if header else detect(path)
    if json:
        print_json(describe(detection, header))
    else:
        stdout.print("\n".join(lines(detection, header)), markup=False, soft_wrap=True)
