"""`mezzotint inspect`: what a model file, folder or picture is, and which key decided; how models are built, drawn."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import print_json, stdout
from mezzotint.cli.options import Json
from mezzotint.errors import RequestError
from mezzotint.images import read_metadata, write_file

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def inspect(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Model file, model folder, or picture; to draw: presets, too.")
    ],
    diagram: Annotated[
        bool, typer.Option("--diagram", help="Draw the architecture; several models side by side, differences marked.")
    ] = False,
    svg: Annotated[Path | None, typer.Option(help="Write the drawing as SVG (with --diagram).")] = None,
    json: Json = False,
) -> None:
    """Tell what a model is (family, objective, parts, what is missing) and why, how a picture was made, or draw models.

    Example: mezzotint inspect model

    Example: mezzotint inspect picture.png --json

    Example: mezzotint inspect sd15 sdxl --diagram --svg family.svg
    """
    if diagram:
        _draw(paths, svg, is_json=json)
        return
    if svg is not None:
        raise RequestError("--svg is the drawing of --diagram; give both")
    if len(paths) > 1:
        raise RequestError(f"{len(paths)} paths: one is told at a time; several can be drawn with --diagram")
    path = Path(paths[0])
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


def _draw(sources: list[str], svg: Path | None, *, is_json: bool) -> None:
    from mezzotint.explain.architecture import architecture
    from mezzotint.explain.diagram import drawn_svg, drawn_text

    models = [architecture(source) for source in sources]
    if svg is not None:
        write_file(svg, drawn_svg(models).encode())
    if is_json:
        print_json([model.to_json() for model in models])
    else:
        stdout.print(drawn_text(models), markup=False, soft_wrap=True)
