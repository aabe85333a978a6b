"""`mezzotint train`: train a network by a recipe, continue where it stopped, or say beforehand what it will cost."""

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mezzotint.cli.console import print_json, table
from mezzotint.errors import ConfigError

if TYPE_CHECKING:
    from mezzotint.training.plan import Plan

RESUMABLE = 75  # saved, and the same command continues


def train(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe (sd-v1-5, icons-unet, …) or a YAML file.")],
    data: Annotated[Path | None, typer.Option(help="Picture set: a folder, or a .parquet, .tar or .toml file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: checkpoints, log.jsonl, sheets, export.")] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Weights to begin with: a run, a model, or nothing. Default: what the recipe says."),
    ] = None,
    scale: Annotated[
        Literal["full", "tiny"], typer.Option(help="tiny: the same in seconds, with small networks and drawn pictures.")
    ] = "full",
    is_planned: Annotated[
        bool, typer.Option("--plan", help="Only print data rule, samples, operations and hours.")
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="auto continues the run in --out if there is one.")
    ] = "auto",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: key=value, dotted; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; default all.")] = None,
) -> None:
    """Train a network by a recipe. SIGTERM saves and exits with 75; the same command then continues, bit for bit.

    Example: mezzotint train sd-v1-5 --plan

    Example: mezzotint train sd-v1-1 --scale tiny --out runs/sd-v1-1

    With --set evaluation.steps=2000 --set evaluation.prompts=icons --set evaluation.clip=evaluator, or `evaluation:` in
    the recipe, averaged weights are measured every 2,000 steps by a process of low priority; the numbers go to the log.
    """
    import torch

    from mezzotint.cli.watch import EvaluationWatch
    from mezzotint.training.config import stages as read_stages
    from mezzotint.training.lineage import carry_out, tiny, train_tiny

    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    configs = read_stages(recipe, changes or ())
    if scale == "tiny":
        configs = tiny(configs, out or Path("run"))
    if is_planned:
        from mezzotint.training.plan import A100, H100, measured, plan

        found = plan(recipe, configs, (A100, H100, measured()), data)
        print_json(found.to_json()) if is_json else _show(found)
        return
    if out is None:
        raise ConfigError("--out FOLDER is needed: where checkpoints, log and exported networks go")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if data is None:
        if scale == "full":
            raise ConfigError("--data PICTURES is needed: a folder, or a .parquet, .tar or .toml file")
        data = train_tiny(configs, out)
    is_done = carry_out(
        configs,
        data,
        out,
        start=start,
        is_continued=resume == "auto",
        should_stop=lambda: bool(stopped),
        watch=EvaluationWatch,
    )
    if not is_done:
        typer.echo(f"saved in {out}; the same command continues", err=True)
        raise typer.Exit(RESUMABLE)
    steps = " + ".join(str(config.max_train_steps) for config in configs)
    typer.echo(f"trained {steps} steps; networks in {out / 'export'}")


def _show(plan: "Plan") -> None:
    """The plan as tables: a column for each stage, then a line for each kind of hardware."""
    cells = [
        {
            "starts from": stage.starts_from,
            "resolution": f"{stage.resolution}²",
            "data rule": "\n".join(stage.rule) or "every picture",
            "objective": stage.objective,
            "text drop": f"{stage.text_drop:.0%}",
            "steps × batch": f"{stage.steps:,} × {stage.batch:,}",
            "samples": f"{stage.samples:,}",
            "FLOP a sample": f"{3 * stage.forward / 1e9:,.1f} G",
            "frozen, once": f"{stage.encoders / 1e9:,.1f} G",
            "FLOP in all": f"{stage.flops:.3g}",
            "memory": f"{stage.state_bytes / 1e9:,.1f} GB + activations",
            "pictures here": "" if stage.pictures is None else f"{stage.pictures:,} ({stage.epochs:,.1f} epochs)",
        }
        for stage in plan.stages
    ]
    is_known = all(stage.forward for stage in plan.stages)
    counted = ("FLOP a sample", "frozen, once", "FLOP in all")
    shown = [key for key in cells[0] if cells[0][key] and (is_known or key not in counted)]
    rows = [(key, *(cell[key] for cell in cells)) for key in shown]
    table(None, (plan.recipe, *(f"stage {number}" for number in range(1, len(cells) + 1))), rows)
    if is_known:
        hours = [
            (h.name, f"{plan.hours[h.name]:,.0f} h", f"{plan.hours_from_nothing[h.name]:,.0f} h", h.source)
            for h in plan.hardware
        ]
        table(" → ".join((*plan.before, plan.recipe)), ("on one", "this recipe", "from nothing", "speed"), hours)
    table("where the numbers come from", ("", ""), plan.sources.items())


if __name__ == "__main__":
    typer.run(train)
