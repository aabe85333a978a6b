"""One evaluation from spec to report: pictures, features, numbers; continued wherever it was stopped.

The output folder holds `spec.json`, `sets/` (pictures and features), `report.json` and, for people, `report.html`.
Numbers are made from the finished files alone, in canonical order: workers, shards and crashes cannot change a byte of
the report.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any  # Any: JSON, and fields of EvaluationSpec, which validates them

from PIL import Image

from mezzotint.checkpoints.files import read_json, write_json
from mezzotint.errors import CheckpointError, ConfigError, RequestError
from mezzotint.evaluation import numbers
from mezzotint.evaluation.bench import CLIPS, Bench, prompts_of, threads
from mezzotint.evaluation.crew import carry_out
from mezzotint.evaluation.features import Extractor
from mezzotint.evaluation.numbers import Entry, Features, Numbers, Reference, Scored, gathered
from mezzotint.evaluation.report import page
from mezzotint.evaluation.spec import REFERENCE, TRAINING, EvaluationSpec, read_spec
from mezzotint.evaluation.statistics import read_statistics, write_statistics
from mezzotint.evaluation.work import MadePictures, WorkSet, key_of
from mezzotint.images import read_metadata, write_file

SCHEMA = 1
REPORT, PAGE, TABLE = "report.json", "report.html", "prompts.tsv"

Told = Callable[[int, int], None]
"""Called with pictures done and pictures in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A finished evaluation, or, with `report` None, one shard of it."""

    folder: Path
    report: Mapping[str, Any] | None


def evaluate(
    spec: EvaluationSpec | str | Path | None = None, /, *, progress: Told = lambda done, total: None, **fields: Any
) -> Evaluation:
    """Measure what a spec, a YAML file of one, or the fields of one say.

    Run again after a crash with the same spec, it continues; what is done is not done again.
    Raises: RequestError for a wrong spec; BrokenPictures for unreadable pictures, when all else is done.
    """
    if isinstance(spec, EvaluationSpec):
        if fields:
            raise RequestError(f"give a spec or its fields, not both (fields: {', '.join(fields)})")
    else:
        spec = EvaluationSpec(**fields) if spec is None else read_spec(spec, **fields)
    with threads(spec.threads):
        bench = Bench(spec)
        bench.begin()
        carry_out(bench, bench.jobs(), progress)
        if spec.part[1] > 1:
            return Evaluation(folder=spec.out, report=None)
        return finished(bench)


def finished(bench: Bench) -> Evaluation:
    """The report of an evaluation whose every chunk is there, written beside them."""
    spec = bench.spec
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": f"mezzotint {version('mezzotint')}",
        "settings": spec.settings(),
        "extractors": [one.provenance for one in _every(bench)],
        "sets": [],
    }
    references = {key_of(one): _reference(bench, one) for one in bench.distances}
    trained = bench.named(TRAINING)
    for work in bench.measured:
        found = Numbers()
        features = {key_of(one): gathered(work, one) for one in bench.extractors(work)}
        for one in bench.distances:
            made = features[key_of(one)]
            _compared(bench, found, one, made, references[key_of(one)])
            if trained is not None:
                numbers.copied(found, one, made, gathered(trained, one))
            if spec.statistics:
                write_statistics(spec.out / f"{work.name}-{one.name}.stats.safetensors", made.statistics(one))
        if bench.clip is not None:
            _scored(bench, found, work, bench.clip, features[key_of(bench.clip)])
        report["sets"].append(_about(work, next(iter(features.values())), found))
        write_file(work.folder / TABLE, _table(found.prompts).encode())
    for name in (REFERENCE, TRAINING):
        work = bench.named(name)
        if work is not None and bench.distances:
            features = gathered(work, bench.distances[0])
            report[name] = _set(work, features)
            if spec.statistics and name == REFERENCE:
                for one in bench.distances:
                    statistics = gathered(work, one).statistics(one)
                    write_statistics(spec.out / f"{name}-{one.name}.stats.safetensors", statistics)
    if bench.reference is not None:
        report[REFERENCE] = {"name": REFERENCE, "statistics": str(bench.reference)}
    entries: list[Entry] = [entry for told in report["sets"] for entry in told["metrics"]]
    if not any(entry["value"] is not None for entry in entries):
        raise ConfigError(str(entries[0]["why"]) if entries else "nothing could be measured of these features")
    report["best"] = best(report["sets"])
    report = json.loads(json.dumps(report))
    write_json(spec.out / REPORT, report)
    write_file(spec.out / PAGE, page(report, spec.out, lambda name, picture: _picture(bench, name, picture)).encode())
    return Evaluation(folder=spec.out, report=report)


def read_report(path: str | Path) -> dict[str, Any]:
    """The report of an output folder, or in a file.

    Raises: CheckpointError if there is none, or it is of a later version.
    """
    path = Path(path)
    file = path / REPORT if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise CheckpointError(f"{path}: no {REPORT}; an output folder of a finished `mezzotint evaluate` is expected")
    report: dict[str, Any] = read_json(file)
    if report.get("schema") != SCHEMA or "sets" not in report:
        raise CheckpointError(f"{file}: no report of schema {SCHEMA} (found {report.get('schema')!r})")
    return report


def best(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several sets, the one that is first by each metric's first number: lowest distance, highest score."""
    if len(sets) < 2:
        return {}
    found: dict[str, Any] = {}
    entries: Sequence[Entry] = sets[0]["metrics"]
    for i, first in enumerate(entries):
        if any(entry["metric"] == first["metric"] for entry in entries[:i]):
            continue
        values = [told["metrics"][i]["value"] for told in sets]
        if all(value is not None for value in values):
            is_low = first["metric"] in {"fid", "sfid", "kid", "cmmd", "copies"}
            chosen = (min if is_low else max)(range(len(sets)), key=lambda i: values[i])
            found[_label(first)] = {"set": sets[chosen]["name"], "value": values[chosen]}
    return found


def _picture(bench: Bench, name: str, picture: str) -> Image.Image | None:
    """A picture of a set by its name; None if it is not here."""
    work = bench.named(name)
    if work is None or picture not in work.source.names:
        return None
    pixels = work.source.read(work.source.names.index(picture)).pixels
    return None if pixels is None else Image.fromarray(pixels)


def _label(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']} ({entry['features']}, {entry['protocol']})"


def _every(bench: Bench) -> Sequence[Extractor]:
    found = [*bench.distances, *([bench.clip] if bench.clip else [])]
    return list({key_of(one): one for one in found}.values())


def _reference(bench: Bench, extractor: Extractor) -> Reference:
    if bench.reference is not None:
        return Reference(statistics=read_statistics(bench.reference))
    work = bench.named(REFERENCE)
    return Reference() if work is None else Reference(features=gathered(work, extractor))


def _compared(bench: Bench, found: Numbers, one: Extractor, made: Features, reference: Reference) -> None:
    chosen = bench.spec.chosen
    words = bench.spec.features
    is_extra = one.name in CLIPS and not any(word.partition(":")[0] in CLIPS for word in words)
    if bench.spec.against is not None:
        numbers.distances(found, frozenset({"cmmd"}) & chosen if is_extra else chosen, one, made, reference)
        if "kid" in chosen and not is_extra:
            numbers.kernel_distance(found, one, made, reference, bench.spec.subset)
    if "is" in chosen and not is_extra:
        numbers.single(found, one, made)


def _scored(bench: Bench, found: Numbers, work: WorkSet, extractor: Extractor, features: Features) -> None:
    said = dict(zip(work.source.names, prompts_of(work), strict=True))
    prompts = [said[name] for name in features.names]
    name, texts = bench.texts(prompts)
    spec = bench.spec
    numbers.scored(
        found,
        Scored(
            extractor=extractor, clip=name, texts=texts, said=prompts, weight=spec.weight, candidates=spec.candidates,
            prefix=spec.prefix, features=features,
        ),
    )  # fmt: skip


def _about(work: WorkSet, features: Features, found: Numbers) -> dict[str, Any]:
    told = {**_set(work, features), "metrics": found.entries, "nearest": found.nearest}
    if isinstance(work.source, MadePictures):
        record = read_metadata(work.source.path(0)).record
        told["request"] = None if record is None else {**record["resolved"]["request"], "prompt": None}
    return told


def _set(work: WorkSet, features: Features) -> dict[str, Any]:
    repeated = len(features.pixels) - len(set(features.pixels))
    return {
        "name": work.name,
        "identity": work.source.identity,
        "pictures": len(features.names),
        "sha256": numbers.digest_of(features),
        "repeated": repeated,
        "left_out": [list(problem) for problem in features.problems],
        "notes": [list(note) for note in features.notes],
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tab-separated: one line for each prompt, best first."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = ["\t".join(heads)]
    lines += ["\t".join(" ".join(str(row[head]).split()) for head in heads) for row in rows]
    return "\n".join(lines) + "\n"
