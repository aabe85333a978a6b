"""`mezzotint evaluate`: numbers that can be trusted, of pictures that are given or made.

`mezzotint evaluate PICTURES …` is short for `mezzotint evaluate run PICTURES …`. The flags of `run` are the fields of
`EvaluationSpec`: same names, same validation.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from typer.core import TyperGroup

from mezzotint.cli.console import print_json, progress_bar, stdout, table, warn
from mezzotint.cli.options import Json, flagged, source_options
from mezzotint.evaluation.spec import EvaluationSpec, read_spec
from mezzotint.pipeline.source import Source

if TYPE_CHECKING:
    from mezzotint.evaluation.evaluate import Evaluation

FAILED = 1
SHOWN = 4  # columns of a report that the terminal has room for
RUN, JUDGE = "run", "evaluator"


class DefaultGroup(TyperGroup):
    """A group whose first word may be left out."""

    def parse_args(
        self, ctx: Any, args: list[str]
    ) -> list[str]:  # Any: click's context, of which typer has its own copy
        """`A --against B` is `run A --against B`."""
        if args and args[0] not in self.commands and args[0] not in {"--help", "-h"}:
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(help="Measure pictures: FID, KID, CLIP score and more.", cls=DefaultGroup, no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure pictures: FID, KID, CLIP score, precision and recall, copies; with intervals and a protocol.

    mezzotint evaluate PICTURES --against REFERENCE is short for mezzotint evaluate run PICTURES --against REFERENCE
    """


def spec_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb, in place of its `**fields`, one flag for each field of `EvaluationSpec`; used ones are passed."""
    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {p.name for p in own}
    asked = [_flag(name) for name in EvaluationSpec.model_fields if name not in taken]

    def called(**given: Any) -> None:  # Any: each flag has its own type
        fields = {flag.name: given.pop(flag.name) for flag in asked}
        verb(**given, **{name: value for name, value in fields.items() if value not in (None, [])})

    return flagged(called, verb, [*own, *asked])


def _flag(name: str) -> inspect.Parameter:
    field = EvaluationSpec.model_fields[name]
    kind = next((kind for kind in get_args(field.annotation) if kind is not type(None)), field.annotation)
    said = field.description or name
    if isinstance(field.default, tuple):  # a list: values with commas between
        kind = str
        default = ",".join(map(str, cast("tuple[object, ...]", field.default)))  # pyright: ignore[reportUnknownMemberType]  # pydantic's default is Any
    elif kind is not field.annotation and type(None) not in get_args(field.annotation):
        kind, default = field.annotation, field.default  # a Literal
    else:
        default = field.default
    shown = "" if default in (None, False, "") else f" [dim]default {default}[/dim]"
    names = {"model": ("--model", "-m"), "out": ("--out", "-o")}.get(name, ())
    option = typer.Option(*names, help=f"{said[0].upper()}{said[1:]}.{shown}", show_default=False)
    if kind is bool:
        option = typer.Option(f"--{name.replace('_', '-')}", help=f"{said[0].upper()}{said[1:]}.", show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


@app.command(RUN)
@spec_options
def run(
    pictures: Annotated[
        list[str] | None, typer.Argument(help="Folder, zip, .parquet, .tar, or picture files.", show_default=False)
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with these settings; flags win.")] = None,
    json: Json = False,
    **fields: Any,  # Any: fields of EvaluationSpec, which validates them
) -> None:
    """Measure pictures, or those that a model makes. Stopped halfway, the same command continues.

    Example: mezzotint evaluate pictures --against reference --features evaluator --metrics fid,kid

    Example: mezzotint evaluate -m model --prompts prompts.txt --clip evaluator --guidance 1,3 --steps 2 --workers 1
    """
    if pictures:
        fields["pictures"] = tuple(pictures)
    asked = read_spec(spec, **fields) if spec is not None else EvaluationSpec(**fields)
    from mezzotint.evaluation.evaluate import evaluate
    from mezzotint.images import check_folder

    check_folder(asked.out)
    with progress_bar() as bar:
        task = bar.add_task(", ".join(asked.pictures)[:40] or str(asked.model), total=None)
        try:
            found = evaluate(asked, progress=lambda done, total: bar.update(task, completed=done, total=total))
        except KeyboardInterrupt:
            warn(f"what is done is kept in {asked.out}; the same command continues")
            raise
    show(found, is_json=json)


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders of shards, or statistics files.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder, or new statistics file.")],
    json: Json = False,
) -> None:
    """Join the shards of one evaluation into what one process would have made, or add up statistics files.

    Example: mezzotint evaluate merge shards/1 shards/2 --out merged
    """
    from mezzotint.evaluation.merge import merge_shards, merge_statistics

    if all(part.is_file() for part in parts):
        whole = merge_statistics(parts, out)
        told = {"out": str(out), "pictures": whole.count, "chunks": len(whole.chunks)}
        print_json(told) if json else stdout.print(f"{out}: {whole.count:,} pictures", markup=False)
        return
    show(merge_shards(parts, out), is_json=json)


@app.command()
def compare(
    one: Annotated[
        Path, typer.Argument(help="Output folder of an evaluation, or its report.json.", show_default=False)
    ],
    other: Annotated[Path, typer.Argument(help="The one that it is compared with.", show_default=False)],
    json: Json = False,
) -> None:
    """Say which numbers of two evaluations differ significantly. Mixed protocols, features or references are refused.

    Example: mezzotint evaluate compare measured measured-again
    """
    from mezzotint.evaluation.compare import compare as compared

    lines = compared(one, other)
    if json:
        print_json([asdict(line) for line in lines])
        return
    rows = [
        (
            line.name if line.sets[0] == line.sets[1] else f"{line.name} ({' / '.join(line.sets)})",
            _number(line.first),
            _number(line.second),
            "" if line.difference is None else _number(line.difference.value),
            "" if line.difference is None else _interval(asdict(line.difference)),
            "significant" if line.is_significant else "not significant" if line.difference else line.why,
        )
        for line in lines
    ]
    table(None, ("number", str(one), str(other), "difference", "95 % interval", "verdict"), rows)


@app.command()
@source_options()
def accuracy(
    data: Annotated[Path, typer.Option(help="Picture set that holds pairs back, as mezzotint data build makes it.")],
    *,
    source: Source,
    judge: Annotated[
        str, typer.Option(help="CLIP that judges: a path, or evaluator, the one in this package.")
    ] = JUDGE,
    steps: Annotated[int, typer.Option(min=1, help="Steps of DDIM for each picture.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge only the first so many pairs.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    json: Json = False,
) -> None:
    """Say whether a model draws pairs of concept and style that training held back, beside pairs that it saw.

    Example: mezzotint evaluate accuracy -m model --data pairs --steps 2 --limit 1
    """
    from mezzotint.evaluation.held_out import HEADS, recombination, rows_of
    from mezzotint.evaluation.tower import place_of

    system = source.load()
    with progress_bar() as bar:
        task = bar.add_task(f"{system.name}, held-out and seen pairs", total=None)
        found = recombination(
            system, data, place_of(judge), steps=steps, guidance=guidance, seed=seed, keep=keep, limit=limit,
            report=lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
    if json:
        print_json(asdict(found))
        return
    table(f"{found.model}, judged by {found.judge}: {found.pairs} pairs of each kind", HEADS, rows_of(asdict(found)))


@app.command()
def selftest(json: Json = False) -> None:
    """Check that this machine computes what it should: closed forms, kernels, accumulators, batches.

    Example: mezzotint evaluate selftest
    """
    from mezzotint.evaluation.selftest import selftest as checks

    found = checks()
    if json:
        print_json([asdict(check) for check in found])
    else:
        table(None, ("", "", ""), [("right" if c.is_right else "WRONG", c.says, c.found) for c in found])
    if not all(check.is_right for check in found):
        raise typer.Exit(FAILED)


def show(found: "Evaluation", *, is_json: bool) -> None:
    """The report on stdout, what a reader must know on stderr."""
    from mezzotint.evaluation.evaluate import PAGE
    from mezzotint.evaluation.report import HEADS, rows_of

    report = found.report
    if report is None:
        told = {"out": str(found.folder), "finished": "this shard"}
        print_json(told) if is_json else stdout.print(
            f"{found.folder}: this shard is done; merge joins them", markup=False
        )
        return
    for told in report["sets"]:
        _warn(told)
    if is_json:
        print_json(report)
        return
    for told in report["sets"]:
        title = f"{told['name']}: {told['pictures']:,} pictures"
        table(title, HEADS[:SHOWN], [row[:SHOWN] for row in rows_of(told)])
        for line in dict.fromkeys(_source(entry) for entry in told["metrics"]):
            stdout.print(f"  {line}", markup=False, soft_wrap=True)
    for label, first in report["best"].items():
        stdout.print(f"best by {label}: {first['set']} ({_number(first['value'])})", markup=False, soft_wrap=True)
    stdout.print(str(found.folder / PAGE), markup=False, soft_wrap=True)


def _warn(told: Mapping[str, Any]) -> None:  # Any: JSON
    from mezzotint.evaluation.report import cut_of

    name = told["name"]
    if left := told["left_out"]:
        warn(f"{name}: {len(left)} pictures left out, such as {left[0][0]}: {left[0][1]}")
    if notes := told["notes"]:
        warn(f"{name}: {len(notes)} pictures converted, such as {notes[0][0]}: {notes[0][1]}")
    if cut := cut_of(told):
        warn(f"{name}: {len(cut)} prompts are longer than the CLIP reads, such as {cut[0]['prompt'][:60]!r}")
    for note in dict.fromkeys(note for entry in told["metrics"] for note in entry.get("notes") or ()):
        warn(f"{name}: {note}")
    for entry in told["metrics"]:
        if entry["value"] is None:
            warn(f"{entry.get('name') or entry['metric']}: {entry['why']}")


def _source(entry: Mapping[str, Any]) -> str:
    """What a number is of: features by name and hash, their protocol, and the CLIP's own name."""
    clip = f", the CLIP {entry['clip']!r}" if "clip" in entry else ""
    return f"features {entry['features']}{clip}; protocol {entry['protocol']} {entry['protocol_digest']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return "none"
    return f"{estimate['low']:.5g} … {estimate['high']:.5g}"


if __name__ == "__main__":
    app()
