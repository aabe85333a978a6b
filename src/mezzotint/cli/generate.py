"""`mezzotint generate`: pictures from a prompt, or from every line of a file."""

from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.options import Json, Output, picture_options, source_options
from mezzotint.cli.pictures import make
from mezzotint.errors import RequestError
from mezzotint.pipeline.source import Source


@picture_options(
    "image", "mask", "strength", "start", "resize", "feather", "paste", "reference", "reference_crop", "reference_noise"
)
@source_options()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the pictures show.")] = None,
    *,
    source: Source,
    output: Output = Path("outputs"),
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt per line, instead of PROMPT.")] = None,
    json: Json = False,
    **fields: object,
) -> None:
    """Make pictures from a prompt.

    Example: mezzotint generate "a red heart, noto emoji" -m model --steps 4 --seed 1
    """
    if (prompt is None) == (prompts is None):
        raise RequestError("exactly one of PROMPT and --prompts is needed; to make a picture of nothing, give ''")
    make(
        source,
        [{**fields, "prompt": line} for line in ([prompt] if prompts is None else lines(prompts))],
        output,
        is_json=json,
    )


def lines(path: Path) -> list[str]:
    """The prompts of a file: its lines, without empty ones and those that begin with #."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts {str(path)!r} cannot be read: {error}") from None
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found:
        raise RequestError(f"prompts {str(path)!r}: there is no prompt in this file")
    return found
