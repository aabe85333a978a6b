"""Shards of one evaluation joined, and statistics of parts added up."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast  # Any: JSON

from mezzotint.checkpoints.files import read_json
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.evaluation.bench import SPEC, Bench, threads
from mezzotint.evaluation.evaluate import Evaluation, finished
from mezzotint.evaluation.spec import EvaluationSpec, spec_of
from mezzotint.evaluation.statistics import Statistics, merge, read_statistics, write_statistics
from mezzotint.evaluation.work import SETS


def merge_statistics(parts: Sequence[Path], out: Path) -> Statistics:
    """Statistics files of ours added up, in a new file; the order of the parts changes nothing.

    Raises: ConfigError if they are of different features or overlap; CheckpointError for other files.
    """
    whole = merge(read_statistics(part) for part in parts)
    write_statistics(out, whole)
    return whole


def merge_shards(parts: Sequence[Path], out: Path) -> Evaluation:
    """The evaluation that folders of shards are parts of, in a new folder: exactly what one process would have made.

    Raises: ConfigError if they are of different evaluations, or chunks are missing.
    """
    told = [_spec(part) for part in parts]
    if other := next((i for i, spec in enumerate(told) if spec.work() != told[0].work()), None):
        first = next(name for name, value in told[0].work().items() if told[other].work()[name] != value)
        raise ConfigError(
            f"merge: {parts[0]} and {parts[other]} are of different evaluations "
            f"({first}: {told[0].work()[first]!r} and {told[other].work()[first]!r})"
        )
    identities: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        for folder in sorted((part / SETS).iterdir()):
            identity = cast("dict[str, Any]", read_json(folder / "set.json")["identity"])  # JSON that we wrote
            if identities.setdefault(folder.name, identity) != identity:
                raise ConfigError(
                    f"merge: {folder} is of other pictures than in {parts[0]}: {json.dumps(identity)[:200]}"
                )
            for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder):
                _put(file, out / file.relative_to(part))
    spec = told[0].model_copy(update={"out": out})
    with threads(spec.threads):
        bench = Bench(spec)
        bench.begin()
        for work in bench.sets:
            if dict(work.source.identity) != identities.get(work.name):
                raise ConfigError(f"merge: {work.name} is here of other pictures than in {parts[0]}")
        if missing := bench.jobs():
            names = sorted({bench.sets[job.place].name for job in missing})
            raise ConfigError(
                f"merge: {len(missing)} chunks of {', '.join(names)} are in none of the {len(parts)} folders; "
                "run the missing shards, or the same command without --shard"
            )
        return finished(bench)


def _spec(part: Path) -> EvaluationSpec:
    if not (part / SPEC).is_file():
        raise CheckpointError(f"{part}: no {SPEC}; folders of `mezzotint evaluate --shard i/n` are expected")
    return spec_of({**read_json(part / SPEC), "out": part})


def _put(file: Path, target: Path) -> None:
    """A link where the file system has such, else a copy."""
    if target.exists() or file.name.startswith("."):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
