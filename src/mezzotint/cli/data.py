"""`mezzotint data`: build picture sets."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.errors import ConfigError

app = typer.Typer(help="Build and inspect picture sets.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Build and inspect picture sets."""


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


if __name__ == "__main__":
    app()
