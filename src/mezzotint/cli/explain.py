"""`mezzotint explain`: what happens between the words and the picture, or in one training step, as a page."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal  # Any: flags, each with its own type

import typer

from mezzotint.cli.console import print_json, stdout
from mezzotint.cli.options import Json, picture_options, source_options
from mezzotint.errors import RequestError
from mezzotint.pipeline.request import DRAWN_SEEDS, Request
from mezzotint.pipeline.source import Source

if TYPE_CHECKING:
    from mezzotint.explain.story import Story

PAGE = Path("story.html")


@picture_options("count", "image", "mask", "strength", "start", "resize", "feather", "paste", "canvas", "level")
@source_options()
def explain(
    prompt: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    *,
    source: Source,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page; a name ending in .json: the data. [dim]default story.html[/dim]"
        ),
    ] = None,
    full_maps: Annotated[
        Path | None, typer.Option(help="A .npz file for every attention map of every head, layer and step.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two prompts, or twice FIELD=VALUE (guidance, sampler, model, …); one seed."),
    ] = None,
    train: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="One training step of a recipe instead of a picture.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="With --train: the picture set.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="With --train: the run whose weights are used, if it exists.")
    ] = None,
    scale: Annotated[
        Literal["full", "tiny"], typer.Option(help="With --train: tiny trains small networks on drawn pictures.")
    ] = "full",
    json: Json = False,
    **fields: Any,  # each flag has its own type, which Request checks
) -> None:
    """Show what happens between the words and the picture, as one page that works offline.

    Example: mezzotint explain "a red heart, noto emoji" -m model --steps 4 -o story.html

    Example: mezzotint explain "a red heart" -m model --steps 3 --compare guidance=1 guidance=7.5 -o two.html

    Example: mezzotint explain --train sd-v1-5 --scale tiny -o step.html
    """  # fmt: skip
    if train is not None:
        if prompt is not None or compare is not None or full_maps is not None:
            raise RequestError("--train shows a training step: leave out PROMPT, --compare and --full-maps")
        story = _training(train, data, run, scale)
    elif compare is not None:
        if full_maps is not None:
            raise RequestError("--full-maps belongs to one picture: leave out --compare")
        story = _comparison(source, prompt, compare, fields)
    else:
        if prompt is None:
            raise RequestError("PROMPT is needed (or --compare, or --train RECIPE); for a picture of nothing, give ''")
        request = Request(prompt=prompt, **fields)
        from mezzotint.explain.story import explain as tell

        story = tell(source.load(), request, full_maps=full_maps)
    if json:
        print_json(story.to_json())
    if output is not None or not json:
        path = story.save(output or PAGE)
        if not json:
            stdout.print(str(path), markup=False, soft_wrap=True)


def _training(recipe: str, data: Path | None, run: Path | None, scale: str) -> "Story":
    from mezzotint.explain.training import explain_training
    from mezzotint.training.config import stages

    found = stages(recipe)
    if run is not None:
        return explain_training(found, recipe, run, data=data, scale=scale)
    with tempfile.TemporaryDirectory() as folder:
        return explain_training(found, recipe, Path(folder) / "run", data=data, scale=scale)


def _comparison(
    source: Source,
    prompt: str | None,
    both: tuple[str, str],
    fields: dict[str, Any],  # as above
) -> "Story":
    """Both sides are checked before a model is loaded; they share it unless they name different ones."""
    import secrets
    from dataclasses import replace

    from mezzotint.explain.compare import Side, compare, parsed

    given: dict[str, Any] = {"seed": secrets.randbelow(DRAWN_SEEDS), "prompt": prompt or "", **fields}
    sides: list[tuple[str, str, Request]] = []
    for said in both:
        name, value = parsed(said)
        if name != "prompt" and prompt is None:
            raise RequestError(f"--compare {said!r}: PROMPT is needed, the same for both")
        model = value if name == "model" else source.model
        changes: dict[str, Any] = {} if name == "model" else {name: value}
        asked = {**given, **changes}
        sides.append((said, model, Request(**asked)))
    systems = {model: replace(source, model=model).load() for _, model, _ in sides}
    return compare(*(Side(said, systems[model], request) for said, model, request in sides))
