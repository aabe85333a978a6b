"""An evaluation gives the same bytes however it is worked on, loses nothing when killed, refuses what cannot be."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any  # Any: JSON of reports, fields of specs

import numpy as np
import pytest
import torch
from PIL import Image

from cli.conftest import tiny_checkpoint
from mezzotint.checkpoints.save import save_folder
from mezzotint.errors import CheckpointError, ConfigError, MezzotintError, RequestError
from mezzotint.evaluation import work
from mezzotint.evaluation.bench import Bench, Job
from mezzotint.evaluation.clip_score import clip_score
from mezzotint.evaluation.compare import compare
from mezzotint.evaluation.crew import carry_out
from mezzotint.evaluation.evaluate import REPORT, evaluate, read_report
from mezzotint.evaluation.features import Extractor
from mezzotint.evaluation.merge import merge_shards, merge_statistics
from mezzotint.evaluation.selftest import selftest
from mezzotint.evaluation.spec import spec_of
from mezzotint.evaluation.statistics import read_statistics
from mezzotint.evaluation.work import BrokenPictures
from mezzotint.images import read_metadata

GIVEN = {
    "pictures": "pictures", "against": "reference", "features": "evaluator", "clip": "evaluator",
    "metrics": "fid,kid,cmmd,pr,dc,clip", "chunk": 5, "workers": 1,
}  # fmt: skip
MADE = {
    "model": "model", "prompts": "prompts.txt", "clip": "evaluator", "guidance": "1,3", "steps": 1, "chunk": 2,
    "workers": 1,
}  # fmt: skip


def draw(folder: Path, count: int, seed: int, side: int = 24) -> None:
    """Smooth coloured pictures with captions."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for i in range(count):
        rough = Image.fromarray((generator.random((4, 4, 3)) * 255).astype(np.uint8))
        rough.resize((side + i, side), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture number {i}\n")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures, a model and prompts."""
    folder = tmp_path_factory.mktemp("shelf")
    draw(folder / "pictures", 10, 0)
    draw(folder / "reference", 13, 1)
    save_folder(tiny_checkpoint(), folder / "model")
    (folder / "prompts.txt").write_text("a red fox\na blue bird\na green car\n")
    return folder


@pytest.fixture(autouse=True)
def _here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Every test in a folder of its own that sees the shelf."""
    for name in os.listdir(shelf):
        (tmp_path / name).symlink_to(shelf / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))


def run(out: str, settings: Mapping[str, Any] = GIVEN, **changes: Any) -> Mapping[str, Any]:
    """The report of an evaluation."""
    report = evaluate(spec_of({**settings, **changes, "out": out})).report
    assert report is not None
    return report


def contents(folder: str) -> dict[str, bytes]:
    """Every file below, but those of which only this evaluation can know (place of the set, times)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def entries(report: Mapping[str, Any], metric: str, place: int = 0) -> list[dict[str, Any]]:
    return [entry for entry in report["sets"][place]["metrics"] if entry["metric"] == metric]


def test_everything_asked_for_is_measured_under_its_own_name() -> None:
    report = run("out")
    told = {entry["name"]: entry for entry in report["sets"][0]["metrics"]}
    digest = entries(report, "fid")[0]["features"].removeprefix("evaluator:")
    names = {f"FD-evaluator:{digest[:8]}", f"KD-evaluator:{digest[:8]}", f"CMMD-evaluator:{digest}"}
    names |= {"precision", "recall", "density", "coverage", "CLIP score, cosine", "CLIP score x100", "CLIP score w2.5"}
    assert names <= told.keys()
    assert not [name for name in told if name.startswith(("FID", "KID"))], "only Inception's may be called that"
    cosine = told["CLIP score, cosine"]
    assert told["CLIP score x100"]["value"] == pytest.approx(100 * cosine["value"])
    assert cosine["clip"] == "evaluator"
    assert len(cosine["clip_sha256"]) == 64
    assert cosine["low"] < cosine["value"] < cosine["high"]
    assert report["sets"][0]["pictures"] == 10
    assert report["against"]["pictures"] == 13
    rows = Path("out/sets/pictures/prompts.tsv").read_text().splitlines()
    assert len(rows) == 11
    page = Path("out/report.html").read_text()
    assert page.count("<img") >= 20, "best and worst pictures are inside"
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ), "nothing is fetched"


def test_the_distance_to_itself_is_nothing() -> None:
    report = run("out", against="pictures", metrics="fid,pr")
    assert abs(entries(report, "fid")[0]["value"]) < 1e-6
    assert entries(report, "pr")[0]["value"] == 1


def test_run_again_it_does_nothing_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    run("out")
    before = contents("out")

    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked again")

    monkeypatch.setattr(Extractor, "__call__", refuse)
    run("out")
    assert contents("out") == before


def test_the_chunks_that_pictures_are_worked_in_change_no_number() -> None:
    one, other = run("one", chunk=3), run("other", chunk=64)
    assert one["sets"] == other["sets"]


def test_made_pictures_share_their_seeds_over_the_sweep_and_are_plotted() -> None:
    report = run("out", MADE, against="reference", features="evaluator", metrics="fid,clip", per_prompt=2)
    assert [told["name"] for told in report["sets"]] == ["g1-s1", "g3-s1"]
    assert [told["pictures"] for told in report["sets"]] == [6, 6]
    assert report["sets"][0]["sha256"] != report["sets"][1]["sha256"]
    assert {place: told["request"]["guidance"] for place, told in enumerate(report["sets"])} == {0: 1.0, 1: 3.0}
    first = read_metadata(Path("out/sets/g1-s1/pictures/000003.png")).record
    assert first is not None
    assert (first["request"]["seed"], first["request"]["prompt"]) == (3, "a blue bird")
    assert set(report["best"]) == {name for name in report["best"] if name.startswith(("FD-", "CLIP"))}
    assert "<h2>Sweep</h2>" in Path("out/report.html").read_text()


def test_killed_halfway_with_two_workers_it_continues_to_the_same_bytes() -> None:
    """The leader is killed with -9; its workers end with it; one process then finishes what three began."""
    run("whole", MADE)
    spec = {**MADE, "workers": 2, "out": "killed"}
    command = [sys.executable, "-m", "mezzotint.cli.main", "evaluate", "run"]
    for name, value in spec.items():
        command += [f"--{name}", str(value)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while (
            not list(Path("killed").rglob("*.safetensors")) and time.monotonic() < deadline and process.poll() is None
        ):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        while _is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _is_alive(process.pid), "workers outlived their leader"
    done = len(list(Path("killed").rglob("*.safetensors")))
    assert done >= 1, "nothing had been done: nothing is tested"
    assert not Path("killed", REPORT).exists() or done == 4
    run("killed", MADE)
    assert contents("killed") == contents("whole")


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_dies_is_told_and_costs_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.evaluation.crew.sys.executable", "/bin/false")
    spec = spec_of({**GIVEN, "workers": 2, "out": "out"})
    with pytest.raises(MezzotintError, match=r"a worker ended unexpectedly .*the same command continues"):
        evaluate(spec)


def test_shards_join_to_what_one_process_makes() -> None:
    run("whole")
    for i in (1, 2):
        assert evaluate(spec_of({**GIVEN, "shard": f"{i}/2", "out": f"shard-{i}"})).report is None
    assert len(list(Path("shard-1").rglob("*.safetensors"))) == 3, "five chunks: three and two"
    with pytest.raises(ConfigError, match="2 chunks of against, pictures are in none of the 1 folders"):
        merge_shards([Path("shard-1")], Path("half"))
    merge_shards([Path("shard-2"), Path("shard-1")], Path("merged"))
    assert contents("merged") == contents("whole")
    evaluate(spec_of({**GIVEN, "clip": None, "metrics": "fid", "out": "other", "shard": "1/2"}))
    with pytest.raises(ConfigError, match=r"different evaluations \(clip: 'evaluator' and None\)"):
        merge_shards([Path("shard-1"), Path("other")], Path("mixed"))
    with pytest.raises(CheckpointError, match=r"no spec\.json"):
        merge_shards([Path("pictures")], Path("nothing"))


def test_a_reference_may_be_statistics_or_an_earlier_evaluation() -> None:
    whole = run("whole", metrics="fid,kid", clip=None, statistics=True)
    file = "whole/against-evaluator.stats.safetensors"
    by_file = run("by-file", metrics="fid,kid", clip=None, against=file)
    assert entries(by_file, "fid")[0]["value"] == pytest.approx(entries(whole, "fid")[0]["value"], rel=1e-9)
    lacking = entries(by_file, "kid")[0]
    assert lacking["value"] is None
    assert "statistics file" in lacking["why"]
    run("earlier", pictures="reference", against="pictures", clip=None, metrics="fid")
    by_folder = run("by-folder", metrics="fid,kid", clip=None, against="earlier")
    assert by_folder["sets"] == whole["sets"]
    with pytest.raises(BrokenPictures, match="has no features of this network in earlier"):
        run("other", metrics="fid", clip=None, against="earlier", precision="bfloat16")


def test_statistics_of_parts_add_up() -> None:
    statistics = run("whole", metrics="fid", clip=None, statistics=True)
    assert statistics["sets"]
    with pytest.raises(ConfigError, match="work units"):
        merge_statistics([Path("whole/pictures-evaluator.stats.safetensors")] * 2, Path("sum.stats.safetensors"))
    one = merge_statistics([Path("whole/pictures-evaluator.stats.safetensors")], Path("sum.stats.safetensors"))
    assert one.count == read_statistics(Path("sum.stats.safetensors")).count == 10


def test_comparisons_say_what_is_significant_and_pair_prompts() -> None:
    run("one", clip="evaluator", metrics="clip,fid")
    same = {line.name: line for line in compare("one", "one")}
    assert not any(line.is_significant for line in same.values())
    assert same["CLIP score, cosine"].why.startswith("Student's t, mean of 10 prompts, paired")
    _paint_over("better", lift=0.02)
    moved = {line.name: line for line in compare("better", "one")}
    assert moved["CLIP score, cosine"].is_significant, "a small difference of every prompt is seen"
    unpaired = moved["R-precision among 10"]
    assert not unpaired.is_significant


def _paint_over(out: str, lift: float) -> None:
    """A copy of the evaluation `one` whose every prompt scored a little higher, by its files."""
    for name, data in contents("one").items():
        target = Path(out, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    table = Path(out, "sets/pictures/prompts.tsv")
    heads, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    at = heads.index("cosine")
    noise = np.random.default_rng(0).normal(0, lift / 10, len(rows))
    for row, more in zip(rows, noise, strict=True):
        row[at] = str(float(row[at]) + lift + more)
    table.write_text("\n".join("\t".join(row) for row in [heads, *rows]) + "\n")


def test_mixed_protocols_features_and_references_are_refused() -> None:
    run("one", metrics="fid", clip=None)
    run("bf16", metrics="fid", clip=None, precision="bfloat16")
    with pytest.raises(ConfigError, match=r"fid cannot be compared: features .*; numbers of different networks"):
        compare("one", "bf16")
    report = json.loads(Path("one/report.json").read_text())
    for entry in report["sets"][0]["metrics"]:
        entry["protocol"], entry["protocol_digest"] = "clean/1", "123"
    Path("clean.json").write_text(json.dumps(report))
    with pytest.raises(ConfigError, match=r"protocol 'clip/1' and 'clean/1'; .* measure both under one"):
        compare("one", "clean.json")
    run("other", metrics="fid", clip=None, against="pictures")
    with pytest.raises(ConfigError, match=r"reference .*; measure both against the same pictures"):
        compare("one", "other")
    run("scores", metrics="clip", against=None)
    with pytest.raises(ConfigError, match="no number in common: one has fid; scores has clip"):
        compare("one", "scores")
    run("fewer", metrics="fid", clip=None, limit=8)
    fewer = compare("one", "fewer")
    assert fewer[0].difference is None
    assert fewer[0].why == "10 and 8 pictures: fewer give another bias; use FID-infinity or KID"


def pixels_of(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:  # Any: numpy's shape parameter
    with Image.open(path) as picture:
        return np.asarray(picture)


def broken(name: str) -> Path:
    """A folder with six good pictures and one that is not."""
    folder = Path(name)
    draw(folder, 6, 3)
    picture, second = (Image.fromarray(pixels_of(folder / name)) for name in ("00.png", "01.png"))
    match name:
        case "corrupt":
            whole = (folder / "00.png").read_bytes()
            (folder / "03.png").write_bytes(whole[: len(whole) // 2])
        case "animated":
            picture.save(folder / "03.gif", save_all=True, append_images=[second.resize((24, 24))])
            (folder / "03.gif").rename(folder / "03.png")
        case "alpha":
            layered = picture.convert("RGBA")
            layered.putalpha(90)
            layered.save(folder / "03.png")
        case "wide":
            Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 100).save(folder / "03.png")
        case _:
            picture.convert("CMYK").save(folder / "03.jpg")
            (folder / "03.png").unlink()
            (folder / "03.txt").rename(folder / "03.bak")
    return folder


@pytest.mark.parametrize(("name", "words"), [("corrupt", "03.png is damaged"), ("animated", "03.png is animated")])
def test_a_picture_that_cannot_be_used_is_named_and_costs_only_itself(name: str, words: str) -> None:
    folder = broken(name)
    fields: dict[str, Any] = {"pictures": name, "clip": None, "metrics": "fid", "chunk": 3}
    with pytest.raises(BrokenPictures, match=f"1 picture cannot be used: {words}"):
        run("out", **fields)
    assert len(list(Path("out/sets/pictures").rglob("*.safetensors"))) == 1, "the other chunk is done"
    report = run("left-out", **fields, skip_broken=True)
    assert report["sets"][0]["left_out"][0][0] == "03.png"
    assert report["sets"][0]["pictures"] == 5
    (folder / "03.png").unlink()
    with pytest.raises(RequestError, match=r"out/sets/pictures holds other pictures .*take another --out"):
        run("out", **fields)


@pytest.mark.parametrize(
    ("name", "words"),
    [("alpha", "transparent parts are white"), ("wide", "16-bit grey reduced to 8 bits"), ("cmyk", "from CMYK")],
)
def test_a_picture_of_another_mode_is_converted_and_told(name: str, words: str) -> None:
    broken(name)
    report = run("out", pictures=name, clip=None, metrics="fid")
    assert report["sets"][0]["pictures"] == 6
    assert words in report["sets"][0]["notes"][0][1]


def test_one_picture_has_no_distance_but_a_score() -> None:
    Path("one.txt").write_text("a fox\n")
    one = run("out", pictures="pictures/00.png", prompts="one.txt")
    distance, score = entries(one, "fid")[0], entries(one, "clip")[0]
    assert distance["value"] is None
    assert "2 are needed" in distance["why"]
    assert score["value"] is not None
    assert (score["low"], score["how"]) == (None, "one prompt: no interval")
    assert "at least" in entries(one, "kid")[0]["why"] or "needed" in entries(one, "kid")[0]["why"]
    with pytest.raises(ConfigError, match="2 are needed"):
        run("nothing", pictures="pictures/00.png", clip=None, metrics="fid")


def test_too_few_pictures_for_the_features_are_told() -> None:
    notes = entries(run("out", metrics="fid", clip=None), "fid")[0]["notes"]
    assert any("10 made pictures for features of 256 numbers" in note for note in notes)


def test_prompts_must_be_one_for_each_picture() -> None:
    with pytest.raises(RequestError, match=r"3 prompts, 10 pictures: one prompt for each picture"):
        run("out", prompts="prompts.txt")
    draw(Path("silent"), 3, 5)
    Path("silent/01.txt").unlink()
    with pytest.raises(RequestError, match=r"2 captions, 3 pictures: '01\.png' has none"):
        run("out", pictures="silent")
    for file in Path("silent").glob("*.txt"):
        file.unlink()
    with pytest.raises(RequestError, match="CLIP score needs what each picture should show"):
        run("out", pictures="silent")
    assert not Path("out").exists(), "nothing was begun"


def test_pictures_of_ours_say_themselves_what_they_should_show() -> None:
    run("made", MADE, guidance="1")
    report = run("out", pictures="made/sets/g1-s1/pictures", against=None, metrics="clip")
    assert entries(report, "clip")[0]["prompts"] == 3


def test_a_folder_of_another_evaluation_is_not_touched() -> None:
    run("out", metrics="fid", clip=None)
    before = contents("out")
    with pytest.raises(RequestError, match=r"out holds another evaluation \(against: 'reference' → 'pictures'\)"):
        run("out", metrics="fid", clip=None, against="pictures")
    assert contents("out") == before
    assert run("out", metrics="pr", clip=None)["sets"], "other numbers of the same features are no other evaluation"


def test_changed_pictures_are_noticed() -> None:
    draw(Path("mine"), 4, 7)
    run("out", pictures="mine", metrics="fid", clip=None)
    Image.new("RGB", (30, 30)).save("mine/00.png")
    with pytest.raises(RequestError, match="pictures have changed since"):
        run("out", pictures="mine", metrics="fid", clip=None)


def test_a_damaged_chunk_is_named() -> None:
    run("out", metrics="fid", clip=None)
    file = next(Path("out/sets/pictures").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=file.name):
        run("out", metrics="fid", clip=None)


def test_features_that_depended_on_the_worker_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant: a worker that numbers its pictures by when they come, not by what they are."""
    run("one", metrics="fid", clip=None)
    came = iter(range(1000))
    monkeypatch.setattr(work, "outputs", lambda extractor, pictures: {"features": _by_arrival(came, len(pictures))})  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    for out, jobs in (("a", [0, 1, 2, 3, 4]), ("b", [4, 3, 2, 1, 0])):
        bench = Bench(spec_of({**GIVEN, "metrics": "fid", "clip": None, "out": out}))
        bench.begin()
        every = bench.jobs()
        carry_out(bench, [Job(*every[i]) for i in jobs])
    files = [sorted(Path(out).rglob("*.safetensors"))[0].read_bytes() for out in ("a", "b")]
    assert files[0] != files[1]


def _by_arrival(came: Any, count: int) -> torch.Tensor:  # Any: an iterator
    return torch.tensor([[float(next(came))] * 256 for _ in range(count)])


def test_the_selftest_is_right_here_and_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.is_right for check in selftest()), selftest()
    monkeypatch.setattr("mezzotint.evaluation.selftest.clip_score", _clamps_late)
    assert [check.says for check in selftest() if not check.is_right] == [
        "CLIP score is w * max(cos, 0), before the mean"
    ]


def _clamps_late(*given: Any, **options: Any) -> Any:  # Any: as clip_score
    found = clip_score(*given, **options)
    return replace(found, weighted=replace(found.cosine, value=2.5 * max(found.cosine.value, 0.0)))


def test_a_report_of_something_else_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no report\.json; an output folder"):
        read_report("pictures")
    Path("other.json").write_text('{"schema": 9}')
    with pytest.raises(CheckpointError, match="no report of schema 1 "):
        read_report("other.json")
