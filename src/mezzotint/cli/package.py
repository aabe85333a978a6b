"""`mezzotint package`: what a run has trained as files to give away."""

from pathlib import Path
from typing import Annotated

import typer


def package(
    recipe: Annotated[str, typer.Argument(help="The recipe that the run was trained by.")],
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[Path, typer.Option(help="Picture set of the run: for its licences.")],
    out: Annotated[Path, typer.Option(help="Folder to write: empty or new.")],
    measured: Annotated[
        list[Path] | None, typer.Option(help="JSON of evaluate or evaluate accuracy, for the model's card; repeatable.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Changes that the run was trained with: key=value, dotted.")
    ] = None,
) -> None:
    """Write a run's autoencoder or CLIP for other runs to build on, or its U-Net with both as a diffusers folder.

    Example: mezzotint package icons-autoencoder --run runs/autoencoder --data icons64 --out autoencoder
    """
    from mezzotint.evaluation.model_card import measured as tables_of
    from mezzotint.training.config import stages as read_stages
    from mezzotint.training.package import pack_model, pack_network
    from mezzotint.training.part import Inputs, place_of

    stages = read_stages(recipe, changes or ())
    config = stages[-1]
    if config.part == "unet":
        tables = tables_of(measured or [])
        needs = {role: place_of(said, run) for role, said in config.needs.items()}
        cards = pack_model(
            stages, run, Inputs(data=data, needs=needs, cache=run.parent / "cache"), out, measured=tables
        )
    else:
        cards = (pack_network(stages, run, data, out),)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    networks = ", ".join(f"{card.part} {card.parameters / 1e6:.1f} M after {card.steps:,} steps" for card in cards)
    typer.echo(f"{out}: {networks}; {size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(package)
