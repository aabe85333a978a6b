"""Levels: what they fill in, what they leave out, and that a picture says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mezzotint.diffusion.guidance import guided, remembering
from mezzotint.diffusion.sampling import Query, Row, Stage
from mezzotint.errors import RequestError
from mezzotint.images import read_metadata
from mezzotint.kernels.memory import Memory
from mezzotint.pipeline.generate import expect, generate, recorded_source, replay
from mezzotint.pipeline.levels import LEVELS, remember_errors, said
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.resolve import resolve
from mezzotint.pipeline.system import System, load

BASE: dict[str, Any] = {"prompt": "a red fox", "guidance": 5.0, "seed": 3}  # Any: fields of a request


@pytest.fixture
def system(reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:  # Any: a fixture of conftest
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    return load(reference("sd1")[1], dtype="float32")


def asked(stage: Stage, steps: int, answer: Any) -> tuple[list[list[Row]], list[Tensor]]:  # Any: a small function
    """The rows of each step, and its x0."""
    rows: list[list[Row]] = []
    found: list[Tensor] = []
    for step in range(steps):
        running = stage(Query(torch.tensor([float(step)]), 1.0, 1.0, step))
        rows.append(next(running))
        try:
            running.send([answer(row, step) for row in rows[-1]])
        except StopIteration as finished:
            found.append(finished.value)
    return rows, found


def test_the_difference_of_the_sides_serves_until_both_are_asked_again():
    def answer(row: Row, step: int) -> Tensor:
        return row.x + (10.0 * (step // 2) if row.slot == "conditional" else 0.0)  # changes at every second step

    rows, found = asked(guided("c", "u", 3.0, every=2), 6, answer)
    assert [len(step) for step in rows] == [2, 1, 2, 1, 2, 1]
    assert all(step[0].slot == "conditional" for step in rows)
    _, exact = asked(guided("c", "u", 3.0), 6, answer)
    assert found == exact
    _, late = asked(guided("c", "u", 3.0, every=3), 6, answer)
    assert late != exact  # the difference at step 2 is not the one at step 0


def test_every_row_of_a_stage_is_given_the_memory():
    memory = object()
    rows, found = asked(remembering(guided("c", "u", 3.0), memory), 2, lambda row, step: row.x)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType, reportUnknownMemberType]
    assert all(row.memory is memory for step in rows for row in step)
    assert found == asked(guided("c", "u", 3.0), 2, lambda row, step: row.x)[1]  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType, reportUnknownMemberType]


def test_a_memory_counts_queries_and_nothing_else():
    memory = Memory(every=2, first=3)
    whole: list[bool] = []
    for query in range(8):
        found = memory.recall(1, (4, 4))
        whole.append(found is None)
        if found is None:
            memory.keep(torch.full((2, 1, 4, 4), float(query)))
        else:
            assert found.shape[0] == 1
            assert found.flatten()[0] == query - 1
    assert whole == [True, True, True, True, False, True, False, True]
    assert Memory(every=2).recall(1, (4, 4)) is None  # nothing is known yet
    memory = Memory(every=2)
    memory.recall(1, (4, 4))
    memory.keep(torch.zeros(1, 1, 4, 4))
    assert memory.recall(2, (4, 4)) is None  # more rows than were kept


def test_levels_fill_in_only_what_is_open(system: System):
    full = resolve(system, Request(**BASE)).request
    fast = resolve(system, Request(**BASE, level="fast")).request
    assert (fast.sampler, fast.spacing) == ("dpmpp_2m", "ays")
    assert (fast.steps or 0) == round((full.steps or 0) * LEVELS["fast"].steps)
    named = resolve(system, Request(**BASE, level="fast", steps=7, sampler="euler")).request
    assert (named.steps, named.sampler) == (7, "euler")
    assert named.spacing == resolve(system, Request(**BASE, steps=7, sampler="euler")).request.spacing


@pytest.mark.parametrize("level", ["balanced", "fast"])
def test_a_level_is_near_the_full_picture_and_says_what_it_left_out(system: System, level: str, tmp_path: Path):
    options: dict[str, Any] = {**BASE, "steps": 10, "sampler": "dpmpp_2m"}  # Any: fields of a request
    full = generate(system, **options)
    result = generate(system, **options, level=level, count=2)
    assert result.metadata[0]["approximated"] | {"measured": None} == {
        "level": level, **LEVELS[level].recorded(), "measured": None
    }  # fmt: skip
    assert full.metadata[0]["approximated"] is None
    difference = _distance(full.images[0], result.images[0])
    assert 0 < difference < 0.5 * _distance(full.images[0], result.images[1])  # nearer than another seed's
    path = result.save(tmp_path)[1]
    assert replay(path, system).difference == 0
    assert read_metadata(path).record == result.metadata[1]


def test_what_was_measured_stands_in_the_record(system: System):
    made = generate(system, **BASE, steps=2, level="fast").metadata[0]
    assert made["approximated"]["measured"] is None
    remember_errors(made["model"]["unet"]["sha256"], {"fast": {"psnr": 31.5, "pictures": 4}})
    made = generate(system, **BASE, steps=2, level="fast").metadata[0]
    assert made["approximated"]["measured"] == {"psnr": 31.5, "pictures": 4}


def test_weights_in_8_bits_are_said_and_replayed(system: System, tmp_path: Path):
    options: dict[str, Any] = {**BASE, "steps": 6, "sampler": "dpmpp_2m"}  # Any: fields of a request
    rounded = system.with_weights("int8")
    result = generate(rounded, **options, count=2)
    difference = _distance(generate(system, **options).images[0], result.images[0])
    assert 0 < difference < 0.5 * _distance(result.images[0], result.images[1])  # nearer than another seed's
    record = result.metadata[1]
    assert record["execution"]["kernels"]["weights"] == "int8"
    assert record["approximated"]["weights"] == {"kind": "int8", "measured": None}
    assert said(record["approximated"]).startswith("approximated: weights int8 (not measured on this model")
    remember_errors(record["model"]["unet"]["sha256"], {"int8": {"psnr": 46.25, "pictures": 4}})
    found = generate(rounded, **options, level="fast").metadata[0]["approximated"]
    assert "level fast (not measured on this model" in said(found)
    assert "weights int8 (46.2 dB to the full picture, median of 4)" in said(found)
    path = result.save(tmp_path)[1]
    again = load(system.place.path, dtype="float32", kernels=recorded_source(path).kernels)
    assert replay(path, again).difference == 0
    assert not expect(path, again).differences
    assert expect(path, system).differences  # by other weights, other bits


def test_where_modules_run_as_they_are_there_is_one_level(reference: Any):  # Any: a fixture of conftest
    plain = load(reference("sd1")[1], dtype="float32", kernels="torch")
    with pytest.raises(RequestError, match=r"level 'fast': .* runs at 'full' only"):
        resolve(plain, Request(**BASE, level="fast"))


def _distance(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(image, dtype=np.float64) for image in (one, other))
    return float(np.abs(a - b).mean())
