"""`mezzotint replay`: the picture of a file made again from what the file says."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import print_json, stderr, stdout
from mezzotint.cli.options import Device, Json, Output
from mezzotint.cli.pictures import Source
from mezzotint.errors import RequestError
from mezzotint.images import check_folder, read_metadata


def replay(
    picture: Annotated[Path, typer.Argument(help="A picture made by mezzotint.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model, if it is no longer where it was.")
    ] = None,
    output: Output = Path("outputs"),
    dtype: Annotated[str | None, typer.Option(help="Instead of the recorded one.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Make a picture again, saying beforehand whether equal bits can be expected, and afterwards whether they came.

    Example: mezzotint replay picture.png -m model
    """
    record = read_metadata(picture).record
    if record is None:
        raise RequestError(
            f"{str(picture)!r} carries no mezzotint record; only pictures made by mezzotint can be replayed"
        )
    name, sha256 = record["model"]["unet"]["name"], record["model"]["unet"]["sha256"]
    if model is None and name != "icons" and not Path(name).exists():
        raise RequestError(f"{picture} was made with {name!r} (sha256 {sha256[:10]}); say where it is with --model")
    system = Source(path=model or name, dtype=dtype or record["execution"]["dtype"], device=device).load()

    from mezzotint.pipeline import generate as pipeline

    expectation = pipeline.expect(picture, system)
    stderr.print("equal bits are expected" if expectation.is_exact else "equal bits are not certain:", markup=False)
    for difference in expectation.differences:
        stderr.print(f"  {difference}", markup=False, soft_wrap=True)
    check_folder(output)
    again = pipeline.replay(picture, system)
    (path,) = again.result.save(output)
    if json:
        print_json(
            {
                "path": str(path),
                "expected_exact": expectation.is_exact,
                "differences": list(expectation.differences),
                "largest_difference": again.difference,
            }
        )
        return
    said = {None: "another size", 0: "equal in every pixel"}.get(
        again.difference, f"differs by up to {again.difference} of 255"
    )
    stdout.print(f"{path}: {said}", markup=False, soft_wrap=True)
