"""`mezzotint replay`: the picture of a file made again from what the file says."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import print_json, stderr, stdout
from mezzotint.cli.options import Json, Output, source_options
from mezzotint.errors import CheckpointError
from mezzotint.images import check_folder
from mezzotint.pipeline.source import Source


@source_options()
def replay(
    picture: Annotated[Path, typer.Argument(help="A picture made by mezzotint.")],
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model, if it is no longer where it was.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Instead of the recorded one.")] = None,
    source: Source,
    output: Output = Path("outputs"),
    json: Json = False,
) -> None:
    """Make a picture again, saying beforehand whether equal bits can be expected, and afterwards whether they came.

    Example: mezzotint replay picture.png -m model
    """
    from mezzotint.pipeline import generate as pipeline

    name, recorded_dtype, kernels = pipeline.recorded_source(picture)
    check_folder(output)
    try:
        system = replace(source, model=model or name, dtype=dtype or recorded_dtype, kernels=kernels).load()
    except CheckpointError as error:
        hint = "" if model else f"; {picture} was made with it: say where it is now with --model"
        raise CheckpointError(f"{error}{hint}") from None
    expectation = pipeline.expect(picture, system)
    stderr.print("equal bits are expected" if expectation.is_exact else "equal bits are not certain:", markup=False)
    for difference in expectation.differences:
        stderr.print(f"  {difference}", markup=False, soft_wrap=True)
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
