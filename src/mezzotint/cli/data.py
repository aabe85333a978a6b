"""`mezzotint data`: build picture sets, and select from them."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.errors import ConfigError

app = typer.Typer(help="Build picture sets, and select from them.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Build picture sets, and select from them."""


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="Which set: icons.")],
    out: Annotated[Path, typer.Option(help="Folder for train.parquet, heldout.parquet and card.json.")],
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels of a side.")] = 64,
    cache: Annotated[Path | None, typer.Option(help="Where fetched packages are kept.")] = None,
    styles: Annotated[str | None, typer.Option(help="Only these styles, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Draw only the first so many.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Fetch pinned open packages from npm, draw and caption them: the set that the packaged model learnt from.

    Example: mezzotint data build icons --out icons64 --limit 20
    """
    if name != "icons":
        raise ConfigError(f"unknown set {name!r}; one of: icons")
    from mezzotint.data.icons import build as build_icons

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    where = cache or Path.home() / ".cache" / "mezzotint" / "npm"
    card = build_icons(out, size=size, cache=where, styles=styles.split(",") if styles else None, limit=limit)
    if is_json:
        typer.echo(json.dumps(card))
    else:
        typer.echo(f"{card['pictures']} pictures of {card['concepts']} concepts in {out}")


@app.command()
def select(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe or a YAML file: its data rule selects.")],
    data: Annotated[Path, typer.Option(help="Picture set: a folder, or a .parquet, .tar or .toml file.")],
    out: Annotated[Path, typer.Option(help="New folder for the pictures, metadata.jsonl and prompts.txt.")],
    is_held_out: Annotated[
        bool, typer.Option("--held-out", help="Those held back, instead of those trained on.")
    ] = False,
) -> None:
    """Write the pictures that a recipe trains on as files, with their first captions as prompts: to measure against.

    Example: mezzotint data select icons-autoencoder --data icons64 --out chosen
    """
    from mezzotint.data.pictures import write_folder
    from mezzotint.training.config import stages
    from mezzotint.training.part import Inputs
    from mezzotint.training.samples import read_split

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rule = stages(recipe)[-1].data
    train, held = read_split(Inputs(data=data, needs={}, cache=out), rule)
    chosen = held if is_held_out else train
    write_folder(chosen, out)
    typer.echo(f"{len(chosen)} pictures in {out}")


if __name__ == "__main__":
    app()
