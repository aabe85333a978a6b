"""`mezzotint bench`: how fast a model runs on this machine, and what its levels of approximation cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mezzotint.cli.console import print_json, stdout, table, warn
from mezzotint.cli.options import Json, source_options
from mezzotint.errors import RequestError
from mezzotint.pipeline.request import SIZE_STEP
from mezzotint.pipeline.source import Source
from mezzotint.storage import atomic

if TYPE_CHECKING:
    from mezzotint.pipeline.bench import LevelCost, Timing


@source_options()
def bench(
    *,
    source: Source,
    size: Annotated[
        list[int] | None, typer.Option(help="Pixels of a side; may be repeated. None: the model's.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is timed.")] = 5,
    levels: Annotated[
        bool, typer.Option("--levels", help="Measure what levels and weights in 8 bits save and change, instead.")
    ] = False,
    pictures: Annotated[int, typer.Option(min=1, help="With --levels: pictures per level.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="With --levels: steps. None: the model's.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this SVG file.")] = None,
    json: Json = False,
) -> None:
    """Time a model as it runs here and as torch would run it, taking turns; or its levels of approximation.

    Example: mezzotint bench -m model --rounds 2
    """
    if wrong := [pixels for pixels in size or [] if pixels < SIZE_STEP or pixels % SIZE_STEP]:
        raise RequestError(f"size {wrong[0]}: must be a multiple of {SIZE_STEP}")
    if levels and source.weights != "auto":
        raise RequestError("--levels measures every kind of weights against the model's own: leave out --weights")
    system = source.load()
    from mezzotint.pipeline.bench import drawn_bars, level_costs, timings

    execution = system.execution()
    costs = list(level_costs(system, pictures, steps)) if levels else []
    times = [] if levels else list(timings(system, size or [system.size[0]], rounds))
    rows = [row.recorded() for row in (costs or times)]
    bars = {cost.level: cost.seconds for cost in costs}
    bars |= {f"{x.part} {x.size}, {way}": seconds for x in times for way, seconds in _ways(x).items()}
    if any(timing.ratio[1] < timing.ratio[0] / 2 for timing in times):
        warn("times of different rounds differ by more than a factor of 2: something else is running")
    if plot is not None:
        with atomic(plot) as file:
            file.write(drawn_bars(f"{system.name}, {execution['dtype']}", bars, "s").encode())
    if json:
        print_json({"model": system.name, "execution": execution, "levels" if levels else "timings": rows})
    elif levels:
        _show_costs(costs)
    else:
        _show_times(times)
    if plot is not None and not json:
        stdout.print(str(plot), soft_wrap=True, markup=False)


def _ways(timing: "Timing") -> dict[str, float]:
    return {"chosen": timing.seconds, "plain torch": timing.plain_seconds}


def _show_times(times: "list[Timing]") -> None:
    table(
        None,
        ("part", "pixels", "s", "plain torch, s", "times faster", "range", "difference"),
        [
            (
                x.part,
                str(x.size),
                f"{x.seconds:.3g}",
                f"{x.plain_seconds:.3g}",
                f"{x.ratio[0]:.2f}",
                f"{x.ratio[1]:.2f} … {x.ratio[2]:.2f}",
                f"{x.difference:.1e}",
            )
            for x in times
        ],
    )


def _show_costs(costs: "list[LevelCost]") -> None:
    table(
        None,
        ("level or weights", "s", "times faster than full", "dB to full", "dB that reuse costs", "pictures"),
        [
            (x.level, f"{x.seconds:.3g}", f"{x.ratio:.2f}", f"{x.psnr:.1f}", f"{x.psnr_of_reuse:.1f}", str(x.pictures))
            for x in costs
        ],
    )
