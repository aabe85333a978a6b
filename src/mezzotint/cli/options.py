"""Flags that several verbs share. A verb's picture options are the fields of `Request`: same names, same validation."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mezzotint.errors import RequestError
from mezzotint.pipeline.request import ImageRef, Request

Model = Annotated[
    str, typer.Option("--model", "-m", envvar="MEZZOTINT_MODEL", help="Checkpoint: folder, file, ORG/NAME, or icons.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder that the pictures are written to.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Weights = Annotated[
    str, typer.Option(help="The U-Net's: auto, int8 (half the memory) or w8a8 (faster, too): approximations.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Preset = Annotated[str | None, typer.Option(help="Family of the checkpoint, if it should not be detected.")]
Objective = Annotated[str | None, typer.Option(help="epsilon, v_prediction or sample, if it should not be detected.")]
Vae = Annotated[Path | None, typer.Option(help="Stand-alone VAE to use instead of the checkpoint's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print data instead of text.")]

Verb = Callable[..., None]


def picture_options(*left_out: str) -> Callable[[Verb], Verb]:
    """Give a verb, in place of its `**fields`, one flag for each field of `Request` but those left out.

    A flag that is not used is not passed on, so that `Request` alone knows its defaults. The verb is called with
    `fields` ready for `Request(**fields)`.
    """

    def decorate(verb: Verb) -> Verb:
        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {p.name for p in own} | set(left_out) | {"options"}
        asked = [_flag(name) for name in Request.model_fields if name not in taken]

        def called(**given: Any) -> None:  # Any: each flag has its own type
            fields = {flag.name: given.pop(flag.name) for flag in asked}
            fields["options"] = _pairs(given.pop("option"))
            verb(**given, **{name: value for name, value in fields.items() if value not in (None, {}, [])})

        option = inspect.Parameter(
            "option",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the sampler; may be repeated.")
            ],
        )
        keyword = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        signature = inspect.Signature([*keyword, *asked, option])
        called.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]  # what typer reads
        called.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        called.__name__, called.__doc__ = verb.__name__, verb.__doc__
        return called

    return decorate


def _flag(name: str) -> inspect.Parameter:
    """The field of `Request` as a flag; None when it was not given."""
    field = Request.model_fields[name]
    kind = next((kind for kind in get_args(field.annotation) if kind is not type(None)), field.annotation)
    if kind is not field.annotation and type(None) not in get_args(field.annotation):
        kind = field.annotation  # a Literal or a tuple: its arguments are no alternatives
    shown = "" if field.default is None or field.default is False else f" [dim]default {field.default}[/dim]"
    said = field.description or name
    option = typer.Option(help=f"{said[0].upper()}{said[1:]}.{shown}", show_default=False)
    annotation = Annotated[(Path if kind is ImageRef else kind) | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _pairs(items: list[str] | None) -> dict[str, object]:
    """KEY=VALUE arguments; values are read as JSON where they are JSON, else as text."""
    pairs: dict[str, object] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise RequestError(f"--option {item!r}: must be KEY=VALUE, for example --option eta=0.5")
        try:
            pairs[key] = json.loads(value)
        except json.JSONDecodeError:
            pairs[key] = value
    return pairs
