"""The real `mezzotint train` on the recipes of the icons, killed a hundred times: nothing lost, not a bit different.

Small networks and drawn pictures, otherwise everything that a run can have: latents cached by bucket, dropped text, two
micro-batches a step, both kinds of average, validation and export due, compiled kernels. MEZZOTINT_RESULTS names a
folder for kills.json.
"""

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from mezzotint.data.drawing import encoded
from mezzotint.training import state
from mezzotint.training.config import packaged

KILLS, IN_SAVES = 100, 30
STEPS, SAVES, VALIDATES = 60, 2, 5
POINTS = 24  # dangerous points of a save that also removes an older one: 22 and a little
STYLES = ("noto", "twemoji", "blob", "fluent")
CONCEPTS = {"heart": (200, 30, 60), "leaf": (40, 160, 60), "drop": (30, 80, 220), "sun": (250, 200, 0)}
TOWER = "{width: 16, layers: 1, heads: 2, mlp: 32, activation: gelu, projection: 8"
SMALL = {
    "autoencoder": (
        "data.resolution=16", "settings.model={channels: [8, 16], blocks: 1, norm_groups: 4, scaling: 1.0}",
        "max_train_steps=4", "train_batch_size=4",
    ),
    "clip": (
        "data.resolution=16", f"settings.text={TOWER}, vocabulary: 530, bos: 528, eos: 529, pad: 529}}",
        f"settings.image={TOWER}, patch: 8, size: 16}}", "max_train_steps=4", "train_batch_size=4",
    ),
    "unet": (
        "data.resolution=16", "data.bucket_step=8", "data.at_least=2", "settings.views=2",
        "settings.model={levels: [{channels: 16}, {channels: 16, depth: 1, heads: 2}], blocks: 1, norm_groups: 8, "
        "middle: {channels: 16, depth: 1, heads: 2}, context: 16}",
        f"max_train_steps={STEPS}", "lr_warmup_steps=3", "lr_decay_steps=20", "train_batch_size=4",
        "gradient_accumulation_steps=2", "ema=[{kind: power, value: 0.05}, {kind: classic, value: 0.9}]",
        "logging_steps=1", f"checkpointing_steps={SAVES}", f"validation_steps={VALIDATES}", "snapshot_steps=10",
        "validation_prompts=[a heart in noto style, a sun in blob style]",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, compiled: None) -> Path:
    """A folder with drawn pictures, a trained autoencoder, a trained CLIP, and `whole`: a U-Net nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    rows: list[dict[str, Any]] = []
    for concept, color in CONCEPTS.items():
        for number, style in enumerate(STYLES):
            picture = Image.new("RGB", ((16, 16), (24, 12))[number % 2], "white")
            ImageDraw.Draw(picture).ellipse((2, 2, 8 + number, 10), fill=color, outline=(number * 60,) * 3)
            said = [f"a {concept} in {style} style", f"{concept}, {style}"]
            columns = {"concept": concept, "style": style, "tone": "", "subgroup": "heart"}
            image = {"bytes": encoded(picture), "path": ""}
            rows.append({"key": f"{concept}-{style}", "captions": said, **columns, "image": image})
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # without types
    for name, part in (("train", rows[:-2]), ("heldout", rows[-2:])):
        parquet.write_table(arrow.Table.from_pylist(part), folder / f"{name}.parquet")
    recipe: dict[str, Any] = yaml.safe_load(packaged()["icons-unet"])
    recipe |= recipe.pop("stages")[-1]  # one stage: what a bug does to the one before is averaged away in the next
    (folder / "unet.yaml").write_text(yaml.safe_dump(recipe))
    for part in ("autoencoder", "clip"):
        assert life(folder, part, part) == 0
    assert life(folder, "unet", "whole") == 0
    return folder


def life(runs: Path, part: str, name: str, death: str = "", bug: str = "", processes: int = 1) -> int:
    """Run the command in a process of its own, or in several under torchrun, in the runs' folder; its exit code."""
    changes = [word for change in SMALL[part] for word in ("--set", change)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    program = [sys.executable, *torchrun, str(Path(__file__).with_name("killed.py"))]
    command = [*program, "train", "unet.yaml" if part == "unet" else f"icons-{part}", "--data", "."]
    told = {
        "MEZZOTINT_DEATH": death,
        "MEZZOTINT_BUG": bug,
        "MEZZOTINT_DEATHS": f"{name}.deaths",
        "MEZZOTINT_KERNELS": "native",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "--out", name, *changes], cwd=runs, env=os.environ | told, capture_output=True, text=True
    )
    assert done.returncode in ({0, -9} if processes == 1 else {0, 1}), done.stderr
    return done.returncode


def deaths(runs: Path, name: str) -> list[str]:
    """Where the processes of a run died."""
    file = runs / f"{name}.deaths"
    return file.read_text().split() if file.exists() else []


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What must not depend on interruptions: records without paces, and hashes of state, averages, networks, sheets."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    newest = state.complete(folder / "checkpoints")[-1]
    files = [*newest.glob("state*")] + [
        f for part in ("export", "snapshots", "sheets") for f in (folder / part).iterdir()
    ]
    hashes = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
    return [{name: value for name, value in record.items() if name != "pace"} for record in records], hashes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_change_nothing(runs: Path) -> None:
    dice, begun = random.Random(0), time.monotonic()
    records, hashes = outcome(runs / "whole")
    assert sum(record["what"] == "train" for record in records) == STEPS
    where: Counter[str] = Counter()
    lives = lost = different = finished = 0
    while where.total() < KILLS or where["save"] < IN_SAVES:
        name = f"killed-{finished}"
        while True:
            in_save = dice.random() < 0.45
            death = f"save:{dice.randrange(1, 3 * POINTS)}" if in_save else f"after:{dice.uniform(0, 1.5):.3f}"
            lives += 1
            if life(runs, "unet", name, death) == 0:
                break
        where.update(deaths(runs, name))
        finished += 1
        found, bits = outcome(runs / name)
        lost += sum(record not in found for record in records) + abs(len(found) - len(records))
        different += sum(bits.get(file) != digest for file, digest in hashes.items()) + len(bits.keys() ^ hashes.keys())
        assert not list((runs / name / "checkpoints").glob(".partial-*"))
    told = {
        "kills": where.total(), "where": dict(where.most_common()), "processes": lives, "finished_runs": finished,
        "steps_a_run": STEPS, "records_a_run": len(records), "files_compared_a_run": len(hashes),
        "records_lost": lost, "files_different": different, "seconds": round(time.monotonic() - begun),
        "torch": torch.__version__, "platform": platform.platform(),
    }  # fmt: skip
    print(json.dumps(told))
    if folder := os.environ.get("MEZZOTINT_RESULTS"):
        (Path(folder) / "kills.json").write_text(json.dumps(told, indent=2) + "\n")
    assert (lost, different) == (0, 0), told


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", ["", "forget_averages", "draw_anew", "skip_a_batch"])
def test_planted_bugs_are_caught(runs: Path, bug: str) -> None:
    """One kill and one continuation: equal without a bug, different with any."""
    name = f"bug-{bug}"
    assert life(runs, "unet", name, f"save:{POINTS + 5}") == -9
    assert life(runs, "unet", name, bug=bug) == 0
    assert (outcome(runs / name) == outcome(runs / "whole")) is not bool(bug)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("counts", [(2, 2), (2, 1), (1, 2)])
def test_torchrun_trains_the_same_bits(runs: Path, counts: tuple[int, int]) -> None:
    """A run in two processes, one killed and all of them ended with it, continued in two or one; and the reverse."""
    name = f"torchrun-{counts[0]}-{counts[1]}"
    assert life(runs, "unet", name, "after:1.5", processes=counts[0]) != 0
    assert deaths(runs, name)
    assert life(runs, "unet", name, processes=counts[1]) == 0
    found, bits = outcome(runs / name)
    records, hashes = outcome(runs / "whole")
    assert found == records
    held, expected = (state.load(state.complete(runs / n / "checkpoints")[-1]).tensors for n in (name, "whole"))
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[key], expected[key]) for key in held)
    assert {file for file in hashes if "checkpoints" not in file and bits[file] != hashes[file]} == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tiny_lineage_runs_in_two_processes_and_in_one(tmp_path: Path) -> None:
    """What a tiny run builds on is trained by the first process alone; the run itself by both, to the same bits."""
    found: list[Mapping[str, torch.Tensor]] = []
    for count in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--no-python"]
        command = [sys.executable, *(torchrun if count > 1 else []), sys.executable, "-m", "mezzotint.cli.main"]
        out = tmp_path / str(count) / "run"
        done = subprocess.run(
            [*command[count == 1 :], "train", "sd-v1-1", "--scale", "tiny", "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(state.load(state.complete(out / "checkpoints")[-1]).tensors)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
