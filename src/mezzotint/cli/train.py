"""`mezzotint train`: train a network by a recipe, or continue where it stopped."""

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

RESUMABLE = 75  # saved, and the same command continues


def train(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe (icons-autoencoder, icons-clip, …) or a YAML file.")],
    data: Annotated[Path, typer.Option(help="Picture set: a folder or a .parquet file.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log.jsonl, sheets, export.")],
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="auto continues the run in --out if there is one.")
    ] = "auto",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: key=value, dotted; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; default all.")] = None,
) -> None:
    """Train a network by a recipe. SIGTERM saves and exits with 75; the same command then continues, bit for bit.

    Example: mezzotint train icons-autoencoder --data icons64 --out runs/autoencoder
    """
    import torch

    from mezzotint.training.config import recipe as read_recipe
    from mezzotint.training.loop import train as run
    from mezzotint.training.part import Inputs, make, place_of

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    config = read_recipe(recipe, changes or ())
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    needs = {role: place_of(said, out) for role, said in config.needs.items()}
    part = make(config, Inputs(data=data, needs=needs, cache=out.parent / "cache"))
    is_finished = run(part, config, out, is_continued=resume == "auto", should_stop=lambda: bool(stopped))
    if not is_finished:
        typer.echo(f"saved in {out}; the same command continues", err=True)
        raise typer.Exit(RESUMABLE)
    typer.echo(f"trained {config.max_train_steps} steps; networks in {out / 'export'}")


if __name__ == "__main__":
    typer.run(train)
