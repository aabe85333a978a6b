"""`mezzotint evaluate` at the terminal: bad input is answered in a line with the right exit code, and loses nothing."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cli.conftest import Command

SCORE = ("--clip", "evaluator", "--workers", "1")
DISTANCE = ("--against", "reference", "--features", "evaluator", "--metrics", "fid", "--workers", "1")


def test_the_first_word_may_be_left_out_and_json_is_the_report(mezzotint: Command, world: Path) -> None:
    ran = mezzotint("evaluate", "pictures", *SCORE, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == json.loads((world / "evaluation" / "report.json").read_text())
    again = mezzotint("evaluate", "run", "pictures", *SCORE)
    assert "CLIP score, cosine" in again.out
    assert "the CLIP 'evaluator'" in again.out
    assert again.out.strip().endswith("report.html")


def test_settings_may_stand_in_a_file(mezzotint: Command, world: Path) -> None:
    (world / "spec.yaml").write_text("pictures: pictures\nclip: evaluator\nworkers: 1\nout: elsewhere\n")
    assert mezzotint("evaluate", "--spec", "spec.yaml", "--weight", "1").code == 0
    report = json.loads((world / "elsewhere" / "report.json").read_text())
    assert [entry["name"] for entry in report["sets"][0]["metrics"]][2] == "CLIP score w1"


def test_what_a_reader_must_know_is_said(mezzotint: Command, world: Path) -> None:
    Image.open(world / "pictures" / "0.png").convert("RGBA").resize((32, 32)).rotate(30).save(
        world / "pictures" / "0.png"
    )
    (world / "pictures" / "1.txt").write_text("long " * 90)
    ran = mezzotint("evaluate", "pictures", *SCORE, *DISTANCE[:-2], "--metrics", "fid,clip")
    assert ran.code == 0, ran.err
    assert "1 pictures converted, such as 0.png: transparent parts are white" in ran.err
    assert "1 prompts are longer than the CLIP reads" in ran.err
    assert "6 made pictures for features of 256 numbers" in ran.err


REFUSED = [
    (["nowhere", *SCORE], 2, "'nowhere': no such folder or file"),
    (["pictures"], 2, "nothing to measure"),
    (["pictures", "-m", "model", *SCORE], 2, "exactly one of pictures and model"),
    (["pictures", "--against", "reference", "--metrics", "fdi"], 2, "did you mean 'fid'?"),
    (["pictures", "--against", "reference", "--features", "incepton"], 2, "unknown features 'incepton'"),
    (["pictures", "--against", "reference", "--features", "clip:nowhere"], 1, "nowhere: no such CLIP"),
    (["pictures", "--clip", "model"], 1, "no CLIP in this folder"),
    (["pictures", "--prompts", "prompts.txt", *SCORE], 2, "2 prompts, 6 pictures"),
    (["pictures", *SCORE, "--shard", "5"], 2, "shard '5': i/n"),
    (["-m", "model", *SCORE], 2, "model: needs prompts"),
    (["-m", "nowhere", "--prompts", "prompts.txt", *SCORE], 1, "'nowhere': no such file or folder"),
    (["-m", "model", "--prompts", "prompts.txt", "--sampler", "eular", *SCORE], 2, "did you mean 'euler'?"),
    (["pictures/0.png", *DISTANCE], 2, "2 are needed"),
    (["pictures", *SCORE, "--chnk", "3"], 2, "No such option: --chnk"),
    (["compare", "pictures", "reference"], 1, "no report.json"),
    (["merge", "pictures", "--out", "merged"], 1, "no spec.json"),
    (["pictures", *SCORE, "--out", "photo.png"], 2, "photo.png"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_wrong_request_is_told_in_a_line(arguments: list[str], code: int, words: str, mezzotint: Command) -> None:
    ran = mezzotint("evaluate", *arguments)
    assert ran.code == code, ran.err
    assert words in ran.err
    assert len(ran.err.strip().splitlines()) <= 3
    assert "Traceback" not in ran.err
    assert not ran.out.strip()


def test_a_corrupt_picture_is_told_and_the_rest_is_kept(mezzotint: Command, world: Path) -> None:
    picture = world / "pictures" / "3.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    ran = mezzotint("evaluate", "pictures", *SCORE, "--chunk", "2")
    assert ran.code == 1
    assert "1 picture cannot be used: 3.png is damaged" in ran.err
    assert len(ran.err.strip().splitlines()) <= 3
    assert len(list((world / "evaluation").rglob("*.safetensors"))) == 2
    left = mezzotint("evaluate", "pictures", *SCORE, "--chunk", "2", "--skip-broken", "--out", "less")
    assert left.code == 0
    assert "1 pictures left out, such as 3.png" in left.err


def test_significance_is_said_in_words(mezzotint: Command) -> None:
    for folder in ("one", "other"):
        assert mezzotint("evaluate", "pictures", *SCORE, "--out", folder).code == 0
    ran = mezzotint("evaluate", "compare", "one", "other")
    assert "not significant" in ran.out
    told = json.loads(mezzotint("evaluate", "compare", "one", "other", "--json").out)
    assert {line["is_significant"] for line in told} == {False}
    assert mezzotint("evaluate", "pictures", *DISTANCE, "--out", "third").code == 0
    refused = mezzotint("evaluate", "compare", "one", "third")
    assert (refused.code, "no number in common" in refused.err) == (2, True)
