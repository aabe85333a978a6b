"""`mezzotint samplers`: every sampler and spacing, with the names that other programs use for them."""

from typing import Annotated

import typer

from mezzotint.cli.console import print_json, table
from mezzotint.names import SAMPLERS, SPACINGS, find_sampler


def samplers(
    name: Annotated[str | None, typer.Argument(help="One sampler, by any program's name for it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
) -> None:
    """List samplers and spacings, or the options of one.

    Example: mezzotint samplers "DPM++ 2M Karras"
    """
    if name is not None:
        info, spacing = find_sampler(name)
        data = {
            "name": info.name,
            "title": info.title,
            "order": info.order,
            "evaluations": f"{info.evaluations[0]}n{info.evaluations[1]:+d}"
            if info.evaluations[1]
            else f"{info.evaluations[0]}n",
            "is_stochastic": info.is_stochastic,
            "spacing": spacing or info.spacing,
            "aliases": list(info.aliases),
            "options": {
                k: {"default": o.default, "low": o.low, "high": o.high, "doc": o.doc} for k, o in info.options.items()
            },
        }
        if json:
            print_json(data)
            return
        table(None, ("", ""), [(k, str(v)) for k, v in data.items() if k != "options"])
        table(
            "options",
            ("name", "default", "range", "meaning"),
            [
                (k, repr(o.default), f"{o.low} … {o.high}" if o.low is not None else "", o.doc)
                for k, o in info.options.items()
            ],
        )
        return
    if json:
        print_json(
            {
                "samplers": {i.name: {"title": i.title, "aliases": list(i.aliases)} for i in SAMPLERS.values()},
                "spacings": {i.name: {"title": i.title, "aliases": list(i.aliases)} for i in SPACINGS.values()},
            }
        )
        return
    table(
        "samplers",
        ("name", "order", "random", "known elsewhere as"),
        [(i.name, f"{i.order:g}", "yes" if i.is_stochastic else "", ", ".join(i.aliases)) for i in SAMPLERS.values()],
    )
    table("spacings", ("name", "meaning"), [(i.name, i.title) for i in SPACINGS.values()])
