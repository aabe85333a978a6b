"""A story changes nothing, is the same every time, quotes the code that stands in the files, and fits into a page."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any  # Any: fields of Request, which validates them

import numpy as np
import pytest
import torch
from PIL import Image

import mezzotint
from cli.conftest import save_folder, tiny_checkpoint
from mezzotint.errors import RequestError
from mezzotint.explain.blocks import bars, code_of, dots, heat, packed, uri, without_times
from mezzotint.explain.steps import mixture
from mezzotint.explain.story import FRAMES, Story, made, tell
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System, load

ROOT = Path(__file__).parents[2]
MOST_BYTES = 5_000_000
EIGHT = ["tokens", "numbers", "noise", "schedule", "steps", "guidance", "latent", "code"]


@pytest.fixture(scope="module")
def story(tiny: System) -> Story:
    return mezzotint.explain(tiny, prompt="a red fox", negative="a dog", steps=5, seed=3, sampler="euler")


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "euler"},
        {"sampler": "heun", "negative": "blue"},
        {"sampler": "dpmpp_2m_sde", "guidance": 1.0},
        {"sampler": "plms", "guidance_rescale": 0.7},
        {"sampler": "dpmpp_sde", "width": 72, "height": 56},
    ],
    ids=lambda fields: next(iter(fields.values())),
)
def test_the_picture_is_that_of_generate_bit_for_bit(fields: dict[str, Any], tiny: System) -> None:
    request = Request(prompt="a red fox", steps=4, seed=11, **fields)
    plain, told = generate(tiny, request), tell(tiny, request)
    assert np.array_equal(np.asarray(plain.images[0]), np.asarray(told.result.images[0]))
    assert plain.metadata[0]["resolved"] == told.result.metadata[0]["resolved"]
    assert plain.infotexts == told.result.infotexts


def test_the_picture_is_the_same_in_bfloat16(tiny_folder: Path) -> None:
    system = load(tiny_folder, dtype="bfloat16")
    request = Request(prompt="a red fox", steps=3, seed=1)
    plain, told = generate(system, request), tell(system, request)
    assert np.array_equal(np.asarray(plain.images[0]), np.asarray(told.result.images[0]))


def test_there_are_eight_sections_each_with_its_formula_and_its_code(story: Story) -> None:
    sections = [section for section in story.sections if section.id != "judged"]
    assert [section.id for section in sections] == EIGHT
    assert all(section.formula and section.code and section.lead for section in sections)
    assert {s.id for s in sections if s.ms is not None} >= {"tokens", "numbers", "steps", "latent"}


def test_a_model_of_the_judges_size_is_judged_and_no_other(story: Story, tiny: System) -> None:
    assert "judged" in [section.id for section in story.sections]  # 64 pixels, as the packaged CLIP sees
    other = mezzotint.explain(tiny, prompt="a fox", steps=1, width=72, height=64)
    assert "judged" not in [section.id for section in other.sections]


def test_quoted_lines_stand_in_the_files(story: Story) -> None:
    quoted = [code for section in story.sections for code in section.code]
    assert len(quoted) >= 15
    for code in quoted:
        lines = [line.strip() for line in (ROOT / code.file).read_text("utf-8").splitlines()]
        said = [line.strip() for line in code.text.splitlines()]
        assert 1 <= len(said) <= 15
        place = code.line - 1
        assert lines[place] == said[0], f"{code.file}:{code.line}"
        for line in said:  # in order; a docstring may be left out between
            place = lines.index(line, place)


def test_code_can_begin_at_a_line() -> None:
    code = code_of(without_times, "isinstance(data, Mapping)", 1)
    assert code.text == "if isinstance(data, Mapping):"


def test_a_story_is_the_same_every_time_but_for_milliseconds(story: Story, tiny: System) -> None:
    again = mezzotint.explain(tiny, prompt="a red fox", negative="a dog", steps=5, seed=3, sampler="euler")
    first, second = (json.loads(json.dumps(one.to_json())) for one in (story, again))
    assert _comparable(first) == _comparable(second)
    other = mezzotint.explain(tiny, prompt="a red fox", negative="a dog", steps=5, seed=4, sampler="euler")
    assert _comparable(other.to_json()) != _comparable(first)


def _comparable(data: object) -> object:
    told = json.loads(json.dumps(without_times(data)))
    for section in told["sections"]:
        if section["id"] == "code":
            section["blocks"] = section["blocks"][1:]  # where the time went
    return told


def test_guidance_mixes_anew_what_the_sampler_was_told(tiny: System) -> None:
    """At the scale that was asked for, the slider's picture is the step's own answer."""
    for rescale in (0.0, 0.7):
        request = Request(prompt="a red fox", steps=3, seed=2, guidance=5.0, sampler="euler", guidance_rescale=rescale)
        scene = made(tiny, request)[0]
        for moment in scene.moments:
            assert torch.equal(mixture(scene, moment, 5.0), moment.answer)
            assert torch.equal(mixture(scene, moment, 1.0), moment.x0["conditional"])
            assert not torch.equal(mixture(scene, moment, 2.0), moment.answer)


def test_the_first_moment_starts_from_the_seed(tiny: System) -> None:
    scene = made(tiny, Request(prompt="a fox", steps=2, seed=9))[0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    assert torch.equal(scene.moments[0].query.x, scene.resolved.plan.initial_scale * noise)


def test_steps_are_chosen_when_there_are_many(tiny: System) -> None:
    scene = made(tiny, Request(prompt="a fox", steps=40, seed=1))[0]
    steps = sorted(scene.watching.moments)
    assert len(steps) == FRAMES
    assert (steps[0], steps[-1]) == (0, len(scene.resolved.levels) - 2)
    assert len(scene.watching.seconds) == len(scene.resolved.levels) - 1


def test_the_page_needs_nothing_from_outside_and_stays_small(tiny: System, tmp_path: Path) -> None:
    """The worst case: a prompt of 75 words and 50 steps."""
    words = " ".join(f"cat{i}" if i % 3 else "sky" for i in range(40))
    long = mezzotint.explain(tiny, prompt=words, steps=50, seed=1)
    page = long.save(tmp_path / "story.html")
    text = page.read_text("utf-8")
    assert page.stat().st_size < MOST_BYTES
    assert "default-src 'none'" in text
    links = re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*["']|@import|url\((?!#|data:)""", text)
    assert not links, links
    assert long.save(tmp_path / "story.json").read_text("utf-8").startswith('{"schema": 1')


def test_what_a_prompt_says_cannot_leave_the_data(tiny: System) -> None:
    story = mezzotint.explain(tiny, prompt="</script><script>alert(1)</script>", steps=1)
    page = story.html()
    assert page.count("</script>") == 2
    assert "<title>&lt;/script&gt;" in page
    data = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert data is not None
    assert json.loads(data[1])["title"] == story.title


def test_a_notebook_shows_the_page_in_a_frame(story: Story) -> None:
    shown = story._repr_html_()  # pyright: ignore[reportPrivateUsage]  # what a notebook calls
    assert shown.startswith("<iframe srcdoc=")
    assert "<script" not in shown


def test_a_story_of_an_unclip_model_shows_its_vector(tmp_path: Path) -> None:
    save_folder(tiny_checkpoint(is_unclip=True), tmp_path / "model")
    system = load(tmp_path / "model", dtype="float32")
    story = mezzotint.explain(system, prompt="a fox", reference=Image.new("RGB", (32, 32), "orange"), steps=2, seed=1)
    numbers = next(section for section in story.sections if section.id == "numbers")
    assert any("vector" in shape for shape in numbers.shapes)


def test_a_file_that_cannot_be_written_is_refused_with_its_name(story: Story, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match=r"story\.html.*cannot be written"):
        story.save(tmp_path / "file" / "story.html")


@pytest.mark.parametrize("size", [(2048, 1024), (96, 64)])
def test_pictures_are_shrunk_to_what_is_shown(size: tuple[int, int]) -> None:
    """A noisy picture is the worst case: of 4 million pixels it would take more than the page may."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    with Image.open(io.BytesIO(base64.b64decode(uri(noise).partition(",")[2]))) as found:
        assert found.size == (min(size[0], 512), min(size[1], 256))
    assert dots(noise).size == (-(-size[0] // -(-size[0] // 64)), -(-size[1] // -(-size[0] // 64)))
    assert np.asarray(dots(noise)).std() == pytest.approx(np.asarray(noise).std(), rel=0.05), "as noisy as it was"
    assert np.asarray(noise.resize((64, 32))).std() < 60, "what means of neighbours would make of it"


def test_blocks_keep_their_numbers() -> None:
    block = packed(torch.tensor([[0.0, 0.5], [1.0, 2.0]]), 0, 1)
    assert list(base64.b64decode(block["data"])) == [0, 128, 255, 255]
    assert block["shape"] == [2, 2]
    assert bars([("a", 0.123456789, "x")], "t")["items"][0]["value"] == 0.123457
    picture = heat(torch.tensor([[0.0, 1.0]]))
    assert [picture.getpixel((i, 0)) for i in (0, 1)] == [(9, 7, 30), (252, 255, 220)]
