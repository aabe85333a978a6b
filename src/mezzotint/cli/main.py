"""The `mezzotint` command: one file per verb, one place that turns an exception into an exit code.

Exit codes: 0 ok, 1 failed, 2 wrong request, 75 saved and can be resumed, 130 interrupted. Verbs import what needs torch
inside their function, so that `--help` and shell completion stay instant.
"""

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from mezzotint.cli import data, evaluate
from mezzotint.cli.bench import bench
from mezzotint.cli.convert import convert
from mezzotint.cli.doctor import doctor
from mezzotint.cli.edit import edit
from mezzotint.cli.explain import explain
from mezzotint.cli.generate import generate
from mezzotint.cli.inspect import inspect
from mezzotint.cli.package import package
from mezzotint.cli.replay import replay
from mezzotint.cli.samplers import samplers
from mezzotint.cli.serve import serve
from mezzotint.cli.train import train
from mezzotint.cli.vary import vary
from mezzotint.errors import ConfigError, MezzotintError, RequestError

# click's, of which recent versions of typer carry their own copy
UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]  # pyright: ignore[reportAssignmentType]
FAILED, WRONG_REQUEST, RESUMABLE, INTERRUPTED = 1, 2, 75, 130

app = typer.Typer(
    name="mezzotint",
    help="The Stable Diffusion family: generate, train, measure, explain, serve.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (generate, edit, vary, explain, inspect, convert, samplers, train, package, serve, replay, bench, doctor):
    app.command()(verb)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log every event.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """The Stable Diffusion family: generate, train, measure, explain, serve."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if version:
        from importlib.metadata import version as installed

        print(installed("mezzotint"))
        raise typer.Exit


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the command: runs a verb and exits with its code; errors are one to three lines on stderr."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # SIGTERM ends a verb as Ctrl-C does, so that nothing half-written stays behind; `train` installs its own
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(arguments, prog_name="mezzotint", standalone_mode=False)
        if code == INTERRUPTED:  # recent versions of typer turn Ctrl-C into this code without a word
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", INTERRUPTED)
    except UsageError as error:
        code = _fail(error.format_message(), WRONG_REQUEST)
    except BrokenPipeError:  # the reader of our output, head for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except (MezzotintError, OSError) as error:
        if "--debug" in arguments:
            raise
        code = _fail(str(error), WRONG_REQUEST if isinstance(error, (RequestError, ConfigError)) else FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    print(f"mezzotint: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
