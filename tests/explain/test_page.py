"""The page in a browser: it asks for nothing, says no error, fits every screen, and shows what the data say."""

import json
import re
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # Any: JSON

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import mezzotint
from mezzotint.explain.compare import Side, compare
from mezzotint.explain.story import Story
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System

pytestmark = pytest.mark.page

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SCREENS = [(1366, 768), (390, 844)]


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """Headless Chromium of this machine."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    assert found, "no Chromium here: apt-get install chromium, or put one on PATH"
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


@dataclass
class Visit:
    """An open page, and what may not happen on it."""

    page: Page
    said: list[str] = field(default_factory=list[str])
    asked: list[str] = field(default_factory=list[str])


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Generator[Open]:
    """Open a story; whatever the console says and whatever is asked for besides the file fails the test."""
    visits: list[Visit] = []

    def opened(story: Story, *, width: int = 1366, height: int = 768, scheme: str = "light") -> Visit:
        path = story.save(tmp_path / "story.html")
        page = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
        ).new_page()
        seen = Visit(page)
        page.on("console", lambda message: seen.said.append(message.text))
        page.on("pageerror", lambda error: seen.said.append(str(error)))
        page.on("request", lambda request: seen.asked.append(request.url))
        page.goto(path.as_uri())
        page.locator("main > section").first.wait_for()
        visits.append(seen)
        return seen

    yield opened
    for seen in visits:
        assert not seen.said
        assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []
        assert sum(url.startswith("file:") for url in seen.asked) == 1
        seen.page.context.close()


@pytest.fixture(scope="module")
def story(tiny: System) -> Story:
    return mezzotint.explain(tiny, prompt="a red fox in snow", steps=6, seed=3, sampler="euler")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_every_section_is_drawn_and_fits(width: int, height: int, scheme: str, story: Story, visit: Open) -> None:
    page = visit(story, width=width, height=height, scheme=scheme).page
    assert page.locator("main > section").count() == len(story.sections)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    for section in story.sections:
        drawn = page.locator(f"#{section.id}")
        assert drawn.locator("h2").inner_text() == section.title
        assert drawn.locator("figure, details.block, p.aside").count() >= len(section.blocks)
    assert "[object" not in page.locator("main").inner_text()
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_everything_has_a_name(story: Story, visit: Open) -> None:
    page = visit(story).page
    nameless = """(nodes) => nodes.filter((n) => !(n.getAttribute('aria-label') || n.closest('label') || n.title
        || n.textContent.trim() || (n.tagName === 'IMG' && n.hasAttribute('alt')))).map((n) => n.outerHTML)"""
    assert page.eval_on_selector_all("button, input, img, svg, canvas.strip", nameless) == []
    assert page.locator("h1").count() == 1


def test_the_scrubber_changes_the_step(story: Story, visit: Open) -> None:
    page = visit(story).page
    stage, said = page.locator("#steps .stage.large img"), page.locator("#steps output.step")
    assert said.inner_text().startswith("step 6:")
    last = stage.get_attribute("src")
    page.locator("#steps input.scrub").focus()
    page.keyboard.press("Home")
    assert said.inner_text().startswith("step 1:")
    assert stage.get_attribute("src") != last
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("step 2:")
    page.locator("#steps .film button").nth(3).click()
    assert said.inner_text().startswith("step 4:")


@pytest.mark.parametrize(("width", "height"), SCREENS)
def test_a_word_shows_where_it_acts_and_its_layers_and_heads(
    width: int, height: int, story: Story, visit: Open
) -> None:
    page = visit(story, width=width, height=height).page
    overlay = page.locator("#steps .over")
    assert overlay.is_hidden()
    fox = page.locator("#steps button.chip", has_text="fox")
    fox.hover()
    assert overlay.is_visible()
    page.locator("#steps h2").hover()
    assert overlay.is_hidden()
    fox.click()
    maps = _maps(story)
    assert page.locator("#steps .layer").count() == len(maps["layers"]["names"])
    page.locator("#steps .layer").nth(2).click()
    assert page.locator("#steps .heads canvas").count() == maps["heads"]["counts"][2]


def test_a_pixel_tells_the_share_of_each_word_and_they_sum_to_1(story: Story, visit: Open) -> None:
    page = visit(story).page
    page.locator("#steps .stage.large").hover(position={"x": 100, "y": 50})
    shown = page.locator("#steps .ranking .number").all_inner_texts()
    rest = re.findall(r"\((\d+) %\)", page.locator("#steps .ranking").inner_text())
    assert len(shown) == 5  # a, red, fox, in, snow
    assert shown == sorted(shown, key=lambda share: -float(share.split()[0]))
    assert sum(float(share.split()[0]) for share in shown) + sum(map(float, rest)) == pytest.approx(100, abs=2.5)


def test_sliders_of_spacing_and_guidance_move(story: Story, visit: Open) -> None:
    page = visit(story).page
    for section, count in (("schedule", 3), ("guidance", 4)):
        slider = page.locator(f"#{section} input[type=range]")
        slider.focus()
        said: set[str] = set()
        for _ in range(count + 1):
            said.add(page.locator(f"#{section} .control output").inner_text())
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Home")
        said.add(page.locator(f"#{section} .control output").inner_text())
        assert len(said) >= 3


def test_two_scrubbers_move_together(tiny: System, visit: Open) -> None:
    common: dict[str, Any] = {"prompt": "a fox", "steps": 4, "seed": 1, "sampler": "euler"}  # Any: any field
    one, two = Request(**common, guidance=1.0), Request(**common, guidance=7.5)
    page = visit(compare(Side("guidance=1", tiny, one), Side("guidance=7.5", tiny, two))).page
    said = page.locator("#steps output.step")
    page.locator("#steps input.scrub").first.focus()
    page.keyboard.press("Home")
    assert [text.split(":")[0] for text in said.all_inner_texts()] == ["step 1", "step 1"]


def test_a_prompt_is_text_and_never_markup(tiny: System, visit: Open) -> None:
    story = mezzotint.explain(tiny, prompt="<img src=x onerror=alert(1)> & 'quotes'", steps=1)
    page = visit(story).page
    assert page.locator("h1").inner_text() == story.title
    assert page.locator("img[src=x]").count() == 0


def _maps(story: Story) -> dict[str, Any]:  # Any: JSON
    told = json.loads(json.dumps(story.to_json()))
    steps = next(section for section in told["sections"] if section["id"] == "steps")
    return next(block for block in steps["blocks"] if block["kind"] == "steps")["maps"]
