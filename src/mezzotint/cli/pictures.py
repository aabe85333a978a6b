"""What every verb that makes pictures does: load a model, run requests one after another, save, tell."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mezzotint.cli.console import print_json, progress_bar, stderr, stdout, warn
from mezzotint.images import check_folder
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.source import Source

if TYPE_CHECKING:
    from mezzotint.pipeline.generate import Result
    from mezzotint.pipeline.system import System


def make(
    source: Source,
    wishes: Iterable[Mapping[str, Any]],  # Any: each field has its own type, which Request checks
    output: Path,
    *,
    is_json: bool,
) -> None:
    """Carry out requests, given by their fields, with one model; pictures of a request are saved when it is done.

    All requests are checked before the model is loaded, and the folder before any work is done.
    """
    requests = [Request(**wish) for wish in wishes]
    check_folder(output)
    system = source.load()
    made: list[dict[str, object]] = []
    for request in requests:
        started = time.monotonic()
        result = run(system, request)
        paths = result.save(output)
        seconds = round(time.monotonic() - started, 2)
        tell([result])
        for path, seed in zip(paths, result.seeds, strict=True):
            made.append({"path": str(path), "prompt": request.prompt, "seed": seed, "warnings": list(result.warnings)})
            if not is_json:
                stdout.print(str(path), soft_wrap=True, markup=False)
        made[-1]["seconds"] = seconds
    if is_json:
        print_json(made)


def tell(results: "Iterable[Result]") -> None:
    """Say on the terminal what the results warn of, and what of them is approximated; each thing once."""
    from mezzotint.pipeline.levels import said  # needs torch, as results do

    made = list(results)
    for warning in dict.fromkeys(line for result in made for line in result.warnings):
        warn(warning)
    found = [found for result in made if (found := result.metadata[0]["approximated"])]
    for line in dict.fromkeys(map(said, found)):
        stderr.print(line, markup=False, soft_wrap=True)


def run(system: "System", request: Request) -> "Result":
    """The result of one request, with a live bar on the terminal."""
    from mezzotint.pipeline.generate import stream

    running = stream(system, request)
    with progress_bar() as bar:
        task = bar.add_task(request.prompt[:40] or "picture", total=None)
        try:
            for progress in running:
                bar.update(task, completed=progress.evaluation, total=progress.evaluations)
        finally:
            running.close()
    return running.result
