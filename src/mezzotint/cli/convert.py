"""`mezzotint convert`: a model in another layout or precision."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import print_json, stdout, warn
from mezzotint.cli.options import Json, source_options
from mezzotint.errors import RequestError
from mezzotint.pipeline.source import Source, locate

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LISTED = 10  # names of tensors that are shown


@source_options("model", "device", "weights", "unclip_stats")
def convert(
    source: Annotated[str, typer.Argument(help="Folder, file (.safetensors, .ckpt) or ORG/NAME.")],
    target: Annotated[Path, typer.Argument(help="NAME.safetensors for a single file, else a folder.")],
    *,
    to: Annotated[str | None, typer.Option(help="diffusers or ldm, if TARGET's name should not decide.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: as it is.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged U-Net instead of the trained one.")] = False,
    shard: Annotated[str | None, typer.Option(help="Split weights of a folder, for example 5GB.")] = None,
    keep_extra: Annotated[
        bool, typer.Option("--keep-extra", help="Keep what TARGET's layout has no place for.")
    ] = False,
    read: Source,
    json: Json = False,
) -> None:
    """Write a model as a diffusers folder or a single file; what both layouts hold keeps its bytes.

    Example: mezzotint convert model model.safetensors --dtype float16
    """
    shard_bytes = None if shard is None else _bytes(shard)
    if to not in (None, "diffusers", "ldm"):
        raise RequestError(f"--to {to!r}: must be diffusers or ldm")
    from mezzotint.checkpoints.convert import convert as convert_checkpoint

    report = convert_checkpoint(
        locate(source)[0],
        target,
        to=to,
        dtype=dtype,
        ema=ema,
        shard_bytes=shard_bytes,
        keep_extra=keep_extra,
        preset=read.preset,
        objective=read.objective,
        vae=read.vae,
    )
    if json:
        print_json(asdict(report))
        return
    stdout.print(f"{report.path}: {report.tensors} tensors", markup=False, soft_wrap=True)
    if report.dropped:
        shown = ", ".join(report.dropped[:LISTED]) + (" …" if len(report.dropped) > LISTED else "")
        warn(f"{len(report.dropped)} tensors have no place there and were left out (--keep-extra keeps them): {shown}")
    for note in report.notes:
        warn(note)


def _bytes(size: str) -> int:
    """`5GB` as a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", size.strip().upper())
    unit = found[2] if found else "?"
    unit = unit if not unit or unit.endswith("B") else unit + "B"
    if found is None or unit not in UNITS:
        raise RequestError(f"--shard {size!r}: must be a size such as 500MB or 5GB")
    return int(float(found[1]) * UNITS[unit])
