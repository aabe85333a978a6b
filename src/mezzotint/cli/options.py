"""Flags that several verbs share: the fields of `Request` and of `Source`, with the same names and validation."""

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from mezzotint.errors import RequestError
from mezzotint.pipeline.request import ImageRef, Request
from mezzotint.pipeline.source import SAID, Source

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder that the pictures are written to.")]
Json = Annotated[bool, typer.Option("--json", help="Print data instead of text.")]

Verb = Callable[..., None]


def source_options(*left_out: str) -> Callable[[Verb], Verb]:
    """Give a verb, in place of its parameter of type `Source`, one flag for each field of that but those left out.

    Left out are also those that the verb has a parameter of its own for.
    """

    def decorate(verb: Verb) -> Verb:
        own = [*inspect.signature(verb, eval_str=True).parameters.values()]
        place = next(i for i, p in enumerate(own) if p.annotation is Source)
        name = own.pop(place).name
        taken = {p.name for p in own} | set(left_out)
        asked = [_source_flag(one) for one in fields(Source) if one.name in SAID.keys() - taken]

        def called(**given: Any) -> None:  # Any: each flag has its own type
            source = Source(**{flag.name: given.pop(flag.name) for flag in asked})
            verb(**given, **{name: source})

        return flagged(called, verb, [*own[:place], *asked, *own[place:]])

    return decorate


def _source_flag(field: "Field[Any]") -> inspect.Parameter:  # Any: of any type
    """The field of `Source` as a flag."""
    said = SAID[field.name]
    names, variable = (("--model", "-m"), "MEZZOTINT_MODEL") if field.name == "model" else ((), None)
    option = typer.Option(*names, envvar=variable, help=f"{said[0].upper()}{said[1:]}.")
    annotation = Annotated[field.type, option]  # pyright: ignore[reportInvalidTypeForm]  # known when this runs
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


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
        return flagged(called, verb, [*own, *asked, option])

    return decorate


def flagged(called: Verb, verb: Verb, parameters: Iterable[inspect.Parameter]) -> Verb:
    """`called` under the verb's name and help, with these parameters for typer to read."""
    keyword = [p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
    called.__signature__ = inspect.Signature(keyword)  # pyright: ignore[reportFunctionMemberAccess]  # what typer reads
    called.__annotations__ = {p.name: p.annotation for p in keyword}
    called.__name__, called.__doc__ = verb.__name__, verb.__doc__
    return called


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
