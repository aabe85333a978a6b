"""The page in a browser: made, watched, stopped, painted, dropped, compared, reloaded. `make test-page`."""

import base64
import io
import json
import shlex
import urllib.request
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Locator, Page, Request, Route, expect

from mezzotint.images import read_metadata
from web.conftest import Open, Visit, photo, serving

pytestmark = pytest.mark.page

GOLDEN = Path(__file__).parent.parent / "golden"
Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # Any: numpy's shape parameter
LONG = 150  # steps of a job that is still running when something else is tried


def got(visit: Visit, path: str) -> Any:  # Any: JSON
    """What the native API answers."""
    with urllib.request.urlopen(f"{visit.address}/api/v1{path}") as answer:
        return json.load(answer)


def picture(visit: Visit, path: str) -> Pixels:
    """The pixels of a picture of the server."""
    with urllib.request.urlopen(f"{visit.address}{path}") as answer, Image.open(io.BytesIO(answer.read())) as image:
        return np.asarray(image)


def grey(pixels: Pixels) -> Pixels:
    """The one channel of a grey picture."""
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def prompt(page: Page, text: str, steps: int | None = 4) -> None:
    """Fill in a prompt and, under More, the steps."""
    page.get_by_label("Prompt", exact=True).fill(text)
    if steps is not None:
        set_more(page, "Steps", str(steps))


def set_more(page: Page, label: str, value: str) -> None:
    """Fill in a field under More."""
    more = page.locator("details.more")
    if more.get_attribute("open") is None:
        more.locator("summary").first.click()
    page.get_by_role("spinbutton", name=label).fill(value)
    page.get_by_role("spinbutton", name=label).press("Tab")


def done(page: Page) -> None:
    """Wait until nothing is being made."""
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def job(visit: Visit, place: str = "create") -> Any:  # Any: JSON
    """The job that the page has in a place, as its store holds it now."""
    return visit.page.evaluate("(place) => import('/web/store.js').then(({ store }) => store.jobs[place])", place)


# Create


def test_a_prompt_becomes_a_picture_through_previews(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a red fox", 24)
    expect(page.locator(".counter")).to_contain_text("of 75 tokens")
    page.get_by_role("button", name="Make the picture").click()
    expect(page.locator(".plate img.is-preview")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_be_visible()
    made = page.get_by_role("figure").get_by_role("img", name="a red fox")
    made.wait_for()
    done(page)
    opened.page.wait_for_function("() => document.querySelector('.plate img').naturalWidth === 64")
    frames = page.get_by_role("group", name="Film strip").get_by_role("button")
    assert frames.count() >= 3, "some previews and the finished picture"
    record = got(opened, f"/images/{job(opened)['images'][0]['id']}")
    assert (record["prompt"], record["request"]["steps"]) == ("a red fox", 24)
    # the film strip leads back through the steps
    frames.first.click()
    expect(page.locator(".plate img.is-preview")).to_be_visible()
    frames.first.press("ArrowRight")
    expect(frames.nth(1)).to_be_focused()
    expect(frames.nth(1)).to_have_attribute("aria-pressed", "true")


def test_several_pictures_and_a_kept_seed(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a blue bird", 2)
    page.get_by_label("Pictures", exact=True).fill("3")
    page.get_by_label("Seed", exact=True).fill("11")
    page.get_by_label("Seed", exact=True).press("Tab")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    contact = page.get_by_role("group", name="Pictures of this job").get_by_role("button")
    expect(contact).to_have_count(3)
    done(page)
    assert [one["seed"] for one in job(opened)["images"]] == [11, 12, 13]
    contact.nth(2).click()
    page.get_by_role("button", name="Reuse seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("13")
    expect(page.get_by_role("button", name="Keep the seed")).to_have_attribute("aria-pressed", "true")


def test_two_presses_start_one_job(visit: Open) -> None:
    page = visit().go()
    prompt(page, "a fox in a hurry", 2)
    started: list[str] = []
    page.on(
        "request", lambda one: started.append(one.url) if one.method == "POST" and one.url.endswith("/jobs") else None
    )
    page.get_by_role("button", name="Make the picture").evaluate("(button) => { button.click(); button.click(); }")
    expect(page.get_by_role("figure").get_by_role("img", name="a fox in a hurry")).to_be_visible()
    done(page)
    with page.expect_request("**/api/v1/jobs"):
        page.get_by_role("button", name="Make the picture").click()
    assert len(started) == 2, "one for the first two presses, and one for the third"
    done(page)


def test_what_changes_the_cost_asks_for_it_again(visit: Open) -> None:
    page = visit().go("explain")

    def priced(word: str) -> Callable[[Request], bool]:
        return lambda one: one.url.endswith("/estimate") and word in (one.post_data or "")

    with page.expect_request(priced('"steps":7')):
        prompt(page, "a fox", 7)
    with page.expect_request(priced('"guidance":1')):
        set_more(page, "Guidance", "1")
    with page.expect_request(priced('"model":')):
        page.get_by_label("Model", exact=True).select_option("another")


def test_stop_takes_effect_midway(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a slow fox", 1000)
    page.get_by_label("Pictures", exact=True).fill("8")
    page.get_by_label("Pictures", exact=True).press("Tab")
    page.get_by_role("button", name="Make 8 pictures").click()
    expect(page.locator(".plate img.is-preview")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    told = got(opened, f"/jobs/{job(opened)['id']}")
    assert told["state"] == "cancelled"
    assert len(told["images"]) < 8


def test_words_that_do_not_fit_are_struck_out(visit: Open) -> None:
    page = visit().go()
    prompt(page, "word " * 90 + "nobodyreadsthis", None)
    expect(page.locator(".counter s")).to_contain_text("nobodyreadsthis")


def test_what_the_server_refuses_is_shown_in_its_own_words(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a fox", 4)
    page.get_by_label("Own").check(force=True)
    page.get_by_role("spinbutton", name="Width").fill("60")
    page.get_by_role("spinbutton", name="Width").press("Tab")
    page.get_by_role("button", name="Make the picture").click()
    expect(
        page.get_by_role("status").get_by_text("width 60: must be a multiple of 8; nearest are 56 and 64")
    ).to_be_visible()
    # a refusal is logged by the browser itself, whatever a page does with it
    opened.said[:] = [line for line in opened.said if "status of 400" not in line]


def test_copied_command_makes_the_same_request(visit: Open) -> None:
    opened = visit()
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = opened.go()
    prompt(page, "it's a fox", 3)
    page.get_by_role("button", name="Make the picture").click()
    page.get_by_role("button", name="Copy as command").click()
    expect(page.get_by_text("Command copied")).to_be_visible()
    words = shlex.split(page.evaluate("() => navigator.clipboard.readText()"))
    assert words[:3] == ["mezzotint", "generate", "it's a fox"]
    assert words[words.index("--steps") + 1] == "3"
    assert words[words.index("--seed") + 1] == str(job(opened)["images"][0]["seed"])
    page.get_by_role("button", name="Copy as Python").click()
    expect(page.get_by_text("Python copied")).to_be_visible()
    assert "mezzotint.generate(" in page.evaluate("() => navigator.clipboard.readText()")


def test_what_is_said_to_be_copied_was_copied(visit: Open) -> None:
    """As over http on another machine, where there is no clipboard to write to; also out of a dialog."""
    opened = visit()
    opened.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined });")
    made_alone(opened, {"prompt": "a fox", "steps": 1})
    page = opened.go("gallery")
    page.evaluate("() => addEventListener('copy', () => (window.copied = document.activeElement.value))")
    page.get_by_role("list", name="Pictures").get_by_role("button").first.click()
    dialog = page.get_by_role("dialog", name="Picture")
    dialog.get_by_role("button", name="Copy as command").click()
    expect(page.get_by_text("Command copied")).to_be_visible()
    assert page.evaluate("() => window.copied").startswith("mezzotint generate 'a fox'")
    page.evaluate("() => (document.execCommand = () => false)")
    dialog.get_by_role("button", name="Copy as Python").click()
    expect(page.get_by_text("Python not copied")).to_be_visible()


# a reload


def test_a_reload_in_the_middle_goes_on_where_it_was(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a fox that takes its time", LONG)
    page.get_by_label("Pictures", exact=True).fill("2")
    page.get_by_label("Pictures", exact=True).press("Tab")
    page.get_by_role("button", name="Make 2 pictures").click()
    expect(page.get_by_role("group", name="Film strip").get_by_role("button").nth(3)).to_be_visible()
    asked: list[str | None] = []
    page.on("request", lambda one: asked.append(one.headers.get("last-event-id")) if "/jobs/" in one.url else None)
    before = job(opened)
    page.reload()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a fox that takes its time")
    frames = page.get_by_role("group", name="Film strip").get_by_role("button")
    expect(frames.nth(3)).to_be_visible()
    assert asked
    assert asked[0] is not None
    assert int(asked[0]) >= int(before["lastEventId"] or 0)
    done(page)
    after = job(opened)
    assert after["id"] == before["id"]
    assert after["state"] == "done"
    assert [one["number"] for one in after["images"]] == [0, 1]


# Edit


def open_photo(page: Page, path: Path) -> Locator:
    """Open a picture in Edit; the canvas that it is painted on."""
    with page.expect_response("**/api/v1/uploads"):
        page.locator("mz-edit input[type=file]").set_input_files(path)
    expect(page.locator("mz-edit input[type=file]")).to_have_value("")  # or choosing it again would be no change
    page.locator("mz-painter canvas").wait_for()
    expect(page.get_by_text("64 × 64")).to_be_visible()
    return page.locator("mz-painter canvas")


def stroke(size: int, points: list[tuple[float, float]], radius: float) -> Pixels:
    """The mask of a stroke by its rule: pixels whose centre is within the radius of the path."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    found = np.zeros((size, size), bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] or points, strict=False):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1) if length else 0.0
        found |= (x - x0 - t * (x1 - x0)) ** 2 + (y - y0 - t * (y1 - y0)) ** 2 <= radius**2
    return np.where(found, 255, 0).astype(np.uint8)


def drag(page: Page, canvas: Locator, zoom: float, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Paint along points given in picture pixels; returns the points that whole CSS pixels of a mouse can reach.

    The picture's middle is in the middle of the canvas: that is where zooming leaves it.
    """
    box = canvas.bounding_box()
    assert box is not None
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    at = [(round(middle[0] + zoom * (x - 32)), round(middle[1] + zoom * (y - 32))) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point)
    page.mouse.up()
    return [((x - middle[0]) / zoom + 32, (y - middle[1]) / zoom + 32) for x, y in at]


def zoom_to(page: Page, zoom: float) -> None:
    """Press the buttons until the picture stands at this zoom."""
    page.get_by_role("button", name="show at its own size").click()
    label = page.get_by_role("button", name="show at its own size")
    while f"Zoom {round(100 * zoom)} percent" not in str(label.get_attribute("aria-label")):
        page.get_by_role("button", name="Zoom in").click()


def mask_of(page: Page) -> Pixels:
    """The mask that the page holds."""
    data = page.evaluate("() => [...document.querySelector('mz-painter').mask.data]")
    return np.asarray(data, np.uint8).reshape(64, 64)


@pytest.mark.parametrize("scale", [1, 1.25, 2], ids=lambda scale: f"browser at {scale}")
@pytest.mark.parametrize("zoom", [1, 1.25, 2], ids=lambda zoom: f"picture at {zoom}")
def test_a_painted_mask_is_exact(scale: float, zoom: float, visit: Open, studio: Path) -> None:
    """At every zoom of the browser (what a page sees of it is devicePixelRatio) and of the picture."""
    opened = visit(device_scale_factor=scale)
    page = opened.go("edit")
    canvas = open_photo(page, studio / "photo.png")
    zoom_to(page, zoom)
    page.get_by_role("slider", name="Size").fill("7")
    # from inside across the left edge, back in, and a dot
    path = drag(page, canvas, zoom, [(20, 20), (33, 41), (-6, 50), (12, 58)])
    dot = drag(page, canvas, zoom, [(50, 10)])
    expected = np.maximum(stroke(64, path, 3.5), stroke(64, dot, 3.5))
    assert 100 < (expected > 0).sum() < 2000
    assert (mask_of(page) == expected).all()
    # undo, redo, erase
    page.keyboard.press("Control+z")
    assert (mask_of(page) == stroke(64, path, 3.5)).all()
    page.keyboard.press("Control+Shift+Z")
    page.get_by_role("button", name="Eraser").click()
    gone = drag(page, canvas, zoom, [(30, 30), (30, 44)])
    expected[stroke(64, gone, 3.5) > 0] = 0
    assert (mask_of(page) == expected).all()
    # what the server is sent is that mask, to the pixel
    page.get_by_label("What it shows instead").fill("a fox")
    set_more(page, "Steps", "2")
    with page.expect_request("**/api/v1/jobs") as sent:
        page.get_by_role("button", name="Make what is marked").click()
    request = json.loads(sent.value.post_data or "")["requests"][0]
    assert (grey(picture(opened, f"/api/v1/uploads/{request['mask']['upload']}")) == expected).all()
    assert (picture(opened, f"/api/v1/uploads/{request['image']['upload']}") == np.asarray(photo())).all()
    done(page)


@pytest.mark.parametrize("scale", [1, 1.25, 2], ids=lambda scale: f"browser at {scale}")
def test_the_pixel_that_is_seen_under_the_pointer_is_the_one_that_is_painted(
    scale: float, visit: Open, tmp_path: Path
) -> None:
    y, x = np.mgrid[0:64, 0:64]
    colours = np.stack([4 * x, 4 * y, (37 * x + 101 * y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    opened = visit(device_scale_factor=scale)
    page = opened.go("edit")
    canvas = open_photo(page, tmp_path / "colours.png")
    zoom_to(page, 6)
    page.get_by_role("slider", name="Size").fill("1")
    page.wait_for_timeout(100)  # a frame is drawn
    box = canvas.bounding_box()
    assert box is not None
    for px, py in ((5, 7), (31, 31), (60, 3), (12, 61)):
        at = (box["width"] / 2 + 6 * (px + 0.5 - 32), box["height"] / 2 + 6 * (py + 0.5 - 32))
        seen = page.evaluate(
            """([x, y]) => {
              const canvas = document.querySelector("mz-painter canvas");
              const box = canvas.getBoundingClientRect();
              const [k, l] = [canvas.width / box.width, canvas.height / box.height];
              return [...canvas.getContext("2d").getImageData(Math.floor(x * k), Math.floor(y * l), 1, 1).data];
            }""",
            at,
        )
        assert seen[:3] == colours[py, px].tolist()
        page.mouse.click(box["x"] + at[0], box["y"] + at[1])
    assert sorted(zip(*np.nonzero(mask_of(page)), strict=True)) == [(3, 60), (7, 5), (31, 31), (61, 12)]
    # this test reads the canvas back; the page does not
    opened.said[:] = [line for line in opened.said if "willReadFrequently" not in line]


def test_a_mask_that_is_off_by_a_pixel_would_be_caught() -> None:
    path = [(20.0, 20.0), (33.0, 41.0)]
    shifted = [(x + 1, y) for x, y in path]
    assert (stroke(64, path, 3.5) != stroke(64, shifted, 3.5)).any()
    assert (stroke(64, path, 3.5) != stroke(64, path, 3.0)).any()


def test_what_is_not_marked_stays_as_it_was(visit: Open, studio: Path) -> None:
    opened = visit()
    page = opened.go("edit")
    canvas = open_photo(page, studio / "photo.png")
    zoom_to(page, 2)
    page.get_by_role("slider", name="Feather").fill("0")
    page.get_by_role("slider", name="Size").fill("12")
    drag(page, canvas, 2, [(20, 20), (40, 30)])
    mask = mask_of(page)
    page.get_by_label("What it shows instead").fill("a fox")
    set_more(page, "Steps", "3")
    page.get_by_role("button", name="Make what is marked").click()
    page.get_by_role("button", name="Go on with this").wait_for()
    made = picture(opened, job(opened, "edit")["images"][0]["url"])
    before = np.asarray(photo())
    assert (made[mask == 0] == before[mask == 0]).all()
    assert (made[mask > 0] != before[mask > 0]).any()
    page.get_by_role("button", name="Go on with this").click()
    expect(page.get_by_text("nothing is marked")).to_be_visible()
    shown = page.evaluate(
        """() => {
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [64, 64];
          const context = canvas.getContext("2d");
          context.drawImage(document.querySelector("mz-painter").source, 0, 0);
          return [...context.getImageData(0, 0, 64, 64).data];
        }"""
    )
    assert (np.asarray(shown, np.uint8).reshape(64, 64, 4)[..., :3] == made).all()


def test_borders_are_painted_beyond_the_edge(visit: Open, studio: Path) -> None:
    opened = visit()
    page = opened.go("edit")
    open_photo(page, studio / "photo.png")
    page.get_by_text("Paint beyond the edge").click()
    page.get_by_label("left", exact=True).fill("16")
    page.get_by_label("bottom", exact=True).fill("8")
    page.get_by_label("bottom", exact=True).press("Tab")
    page.get_by_role("button", name="Extend the picture").click()
    expect(page.get_by_text("80 × 72")).to_be_visible()
    page.get_by_label("What it shows instead").fill("a meadow")
    page.get_by_role("slider", name="Feather").fill("0")
    set_more(page, "Steps", "2")
    with page.expect_request("**/api/v1/jobs") as sent:
        page.get_by_role("button", name="Make what is marked").click()
    request = json.loads(sent.value.post_data or "")["requests"][0]
    mask = grey(picture(opened, f"/api/v1/uploads/{request['mask']['upload']}"))
    image = picture(opened, f"/api/v1/uploads/{request['image']['upload']}")
    expected = np.full((72, 80), 255, np.uint8)
    expected[:64, 16:] = 0
    assert (mask == expected).all()
    assert (image[:64, 16:] == np.asarray(photo())).all()
    assert (image[:64, :16] == np.asarray(photo())[:, :1]).all(), "the edge drawn on"
    page.get_by_role("button", name="Go on with this").wait_for()
    made = picture(opened, job(opened, "edit")["images"][0]["url"])
    assert made.shape == (72, 80, 3)
    assert (made[:64, 16:] == np.asarray(photo())).all()


def test_a_reload_keeps_an_extended_picture(visit: Open, studio: Path) -> None:
    page = visit().go("edit")
    open_photo(page, studio / "photo.png")
    page.get_by_text("Paint beyond the edge").click()
    page.get_by_label("top", exact=True).fill("8")
    page.get_by_label("top", exact=True).press("Tab")
    page.get_by_role("button", name="Extend the picture").click()
    expect(page.get_by_text("64 × 72 · 11.1 % marked")).to_be_visible()
    page.reload()
    expect(page.get_by_text("64 × 72 · 11.1 % marked")).to_be_visible()
    page.get_by_role("link", name="Models", exact=True).click()
    page.get_by_role("link", name="Edit", exact=True).click()
    expect(page.get_by_text("64 × 72 · 11.1 % marked")).to_be_visible()


def test_a_result_is_shown_over_its_own_picture_only(visit: Open, studio: Path, tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(foreign({}))
    page = visit().go("edit")
    open_photo(page, studio / "photo.png")
    page.get_by_label("What it shows instead").fill("a fox")
    set_more(page, "Steps", "2")
    page.get_by_role("button", name="Make it again").click()
    result = page.get_by_role("group", name="Result")
    result.get_by_role("button", name="Show before").wait_for()
    page.reload()
    result.get_by_role("button", name="Show before").wait_for()
    page.locator("mz-edit input[type=file]").set_input_files(tmp_path / "other.png")
    expect(result).to_be_hidden()
    for again in (page.reload, lambda: (page.get_by_role("link", name="Models", exact=True).click(), page.go_back())):
        again()
        expect(page.get_by_text("16 × 16")).to_be_visible()
        page.wait_for_timeout(200)  # for a result that would be drawn over it
        assert page.evaluate("() => document.querySelector('mz-painter').over") is None
        expect(result).to_be_hidden()
    # and one that is put away stays away
    page.get_by_role("button", name="Make it again").click()
    result.get_by_role("button", name="Put away").click()
    expect(result).to_be_hidden()
    page.reload()
    expect(page.get_by_text("16 × 16")).to_be_visible()
    expect(result).to_be_hidden()


def test_a_mask_can_be_painted_without_a_mouse(visit: Open, studio: Path) -> None:
    page = visit().go("edit")
    canvas = open_photo(page, studio / "photo.png")
    page.get_by_role("slider", name="Size").fill("5")
    canvas.focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Space")
    assert (mask_of(page) == stroke(64, [(2.0, 32.0)], 2.5)).all()
    page.keyboard.press("Control+z")
    assert not mask_of(page).any()


def test_a_reload_keeps_picture_and_mask(visit: Open, studio: Path) -> None:
    page = visit().go("edit")
    canvas = open_photo(page, studio / "photo.png")
    zoom_to(page, 2)
    drag(page, canvas, 2, [(20, 20), (40, 30)])
    mask = mask_of(page)
    page.reload()
    page.locator("mz-painter canvas").wait_for()
    assert (mask_of(page) == mask).all()


# Gallery


def test_search_reuse_and_delete(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a lonely zebra", 3)
    set_more(page, "Guidance", "2.5")
    page.get_by_label("Sampler").select_option("euler_ancestral")
    page.get_by_label("eta").fill("0.5")
    page.get_by_label("eta").press("Tab")
    page.get_by_role("button", name="Make the picture").click()
    page.get_by_role("button", name="Reuse all").wait_for()
    done(page)
    seed, before = job(opened)["images"][0]["seed"], job(opened)["id"]
    opened.go("gallery")
    page.get_by_label("Search in prompts").fill("zebra lonely")
    found = page.get_by_role("list", name="Pictures").get_by_role("button")
    expect(found).to_have_count(1)
    page.evaluate("() => localStorage.clear()")
    page.reload()  # the form is empty now
    page.get_by_label("Search in prompts").fill("zebra lonely")
    expect(found).to_have_count(1)
    found.click()
    dialog = page.get_by_role("dialog", name="Picture")
    expect(dialog).to_contain_text("euler_ancestral")
    dialog.get_by_role("button", name="Reuse all").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lonely zebra")
    with page.expect_request("**/api/v1/jobs") as sent:
        page.get_by_role("button", name="Make the picture").click()
    request = json.loads(sent.value.post_data or "")["requests"][0]
    told = (request["seed"], request["steps"], request["guidance"], request["sampler"], request["options"]["eta"])
    assert told == (seed, 3, 2.5, "euler_ancestral", 0.5)
    while job(opened)["id"] == before:  # the server has not answered yet
        page.wait_for_timeout(50)
    done(page)
    first, second = got(opened, "/images?q=zebra")["images"]
    assert (picture(opened, first["url"]) == picture(opened, second["url"])).all(), "the same picture again"
    opened.go("gallery")
    page.get_by_label("Search in prompts").fill("zebra")
    expect(found).to_have_count(2)
    found.first.click()
    dialog.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete for good").click()
    expect(found).to_have_count(1)
    assert got(opened, "/images?q=zebra")["total"] == 1


def foreign(texts: dict[str, str]) -> bytes:
    """A small PNG with text chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


SAMPLER: dict[str, object] = {
    "seed": 77, "steps": 12, "cfg": 6.5, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": 1,
    "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
}  # fmt: skip
COMFY: dict[str, dict[str, object]] = {
    "3": {"class_type": "KSampler", "inputs": SAMPLER},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a comfy fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a hound", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}
LINKS: list[list[object]] = [
    [1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "CONDITIONING"], [3, 7, 0, 3, 2, "CONDITIONING"],
    [4, 5, 0, 3, 3, "LATENT"], [5, 4, 1, 6, 0, "CLIP"], [6, 4, 1, 7, 0, "CLIP"], [7, 3, 0, 8, 0, "LATENT"],
    [8, 4, 2, 8, 1, "VAE"], [9, 8, 0, 9, 0, "IMAGE"],
]  # fmt: skip
INVOKE: dict[str, object] = {
    "positive_prompt": "an invoked fox", "negative_prompt": "a hound", "width": 512, "height": 512, "seed": 78,
    "cfg_scale": 7.0, "steps": 13, "scheduler": "euler", "generation_mode": "txt2img", "app_version": "4.2.0",
    "model": {"name": "v1-5", "base": "sd-1", "type": "main", "key": "k", "hash": "h"},
}  # fmt: skip
FOOOCUS: dict[str, object] = {
    "prompt": "a focused fox", "negative_prompt": "a hound", "steps": 14, "guidance_scale": 4.0, "sharpness": 2.0,
    "base_model": "xl", "base_model_hash": "0", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "79",
    "resolution": "(896, 1152)", "version": "Fooocus v2.5.0", "created_by": "", "styles": "[]", "loras": [],
    "performance": "Speed", "metadata_scheme": "fooocus",
}  # fmt: skip
DROPPED = {
    "AUTOMATIC1111": ((GOLDEN / "a1111.png").read_bytes(), None),
    "ComfyUI": (
        foreign({"prompt": json.dumps(COMFY), "workflow": json.dumps({"links": LINKS})}),
        ("a comfy fox", 12, 77),
    ),
    "InvokeAI": (foreign({"invokeai_metadata": json.dumps(INVOKE)}), ("an invoked fox", 13, 78)),
    "Fooocus": (foreign({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}), ("a focused fox", 14, 79)),
}


def drop(page: Page, data: bytes) -> None:
    """Drop a file on the page, as a browser tells a page of it."""
    page.evaluate(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], "picture.png", { type: "image/png" }));
          for (const name of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(new DragEvent(name, { dataTransfer, bubbles: true, cancelable: true }));
          }
        }""",
        base64.b64encode(data).decode(),
    )


@pytest.mark.parametrize("program", DROPPED)
def test_a_dropped_picture_of_another_program_fills_the_form(program: str, visit: Open) -> None:
    data, expected = DROPPED[program]
    page = visit().go()
    drop(page, data)
    dialog = page.get_by_role("dialog", name="How this picture was made")
    expect(dialog).to_contain_text(f"made by {program}")
    dialog.get_by_role("button", name="Use these parameters").click()
    expect(dialog).to_be_hidden()
    if expected is None:
        told = read_metadata(data).infotext
        assert told is not None
        expected = (told.prompt, int(told.items["Steps"]), int(told.items["Seed"]))
    text, steps, seed = expected
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(text)
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(seed))
    page.locator("details.more > summary").click()
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value(str(steps))


def test_a_picture_without_parameters_says_so_and_can_be_edited(visit: Open) -> None:
    page = visit().go("gallery")
    drop(page, foreign({}))
    dialog = page.get_by_role("dialog", name="How this picture was made")
    expect(dialog).to_contain_text("does not say how it was made")
    dialog.get_by_role("button", name="Edit this picture").click()
    expect(page.get_by_text("16 × 16")).to_be_visible()


# Compare


def test_a_grid_fills_in_and_each_cell_is_the_solo_picture(visit: Open, tmp_path: Path) -> None:
    opened = visit(accept_downloads=True)
    page = opened.go("compare")
    page.get_by_label("Prompt", exact=True).fill("a red fox")
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Seed", exact=True).press("Tab")
    page.get_by_label("Values").first.fill("2, 3, 40")
    page.get_by_label("Down").select_option("sampler")
    page.get_by_label("Values").last.fill("euler, dpmpp_2m")
    expect(page.get_by_text("6 pictures", exact=False).last).to_be_visible()
    page.get_by_role("button", name="Make 6 pictures").click()
    cells = page.locator("td button")
    expect(cells.first).to_be_visible()
    assert page.locator("td .empty").count() > 0, "cells are shown as they finish, not at the end"
    expect(cells).to_have_count(6)
    done(page)
    expect(page.get_by_role("columnheader", name="steps 40")).to_be_visible()
    expect(page.get_by_role("rowheader", name="sampler dpmpp_2m")).to_be_visible()
    images = job(opened, "compare")["images"]
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="One PNG").click()
    downloaded.value.save_as(tmp_path / "grid.png")
    record = read_metadata(tmp_path / "grid.png").record
    assert record is not None
    assert record["grid"]["x"] == {"field": "steps", "values": ["2", "3", "40"]}
    with Image.open(tmp_path / "grid.png") as opened_sheet:
        sheet = np.asarray(opened_sheet.convert("RGB"))
    for image, cell in zip(images, record["cells"], strict=True):
        left, top, width, height = cell["box"]
        inside = sheet[top : top + height, left : left + width]
        assert (inside == picture(opened, image["url"])).all()
    solo: dict[str, object] = {"prompt": "a red fox", "seed": 3, "steps": 3, "sampler": "dpmpp_2m"}
    alone = made_alone(opened, solo)
    assert (alone == picture(opened, images[4]["url"])).all()
    cells.nth(4).click()
    expect(page.get_by_role("dialog", name="Picture")).to_contain_text("dpmpp_2m")


def made_alone(visit: Visit, request: dict[str, object]) -> Pixels:
    """The picture of one request, asked for past the page."""
    body = json.dumps({"request": request, "preview": False}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{visit.address}/api/v1/jobs", body, headers)
    with urllib.request.urlopen(asked) as answer:
        identity = json.load(answer)["id"]
    with urllib.request.urlopen(f"{visit.address}/api/v1/jobs/{identity}/events") as events:
        events.read()  # until the job has ended
    return picture(visit, got(visit, f"/jobs/{identity}")["images"][0]["url"])


def test_a_table_keeps_its_own_labels_beside_another_tab(visit: Open) -> None:
    opened = visit()
    pages = [opened.go("compare"), opened.context.new_page()]
    pages[1].goto(f"{opened.address}/#compare")
    for page, values in zip(pages, ("2, 3", "4, 5"), strict=True):
        page.get_by_label("Prompt", exact=True).fill("a red fox")
        page.get_by_label("Values").first.fill(values)
        page.get_by_role("button", name="Make 2 pictures").click()
        expect(page.locator("td button")).to_have_count(2)
    pages[0].reload()
    expect(pages[0].locator("td button")).to_have_count(2)
    expect(pages[0].get_by_role("columnheader")).to_have_text(["steps 2", "steps 3"])


def test_a_prompt_matrix_has_every_combination(visit: Open) -> None:
    opened = visit()
    page = opened.go("compare")
    page.get_by_label("Prompt matrix").check()
    page.get_by_label("Prompt", exact=True).fill("a fox | in snow | at night")
    set_more(page, "Steps", "1")
    page.get_by_role("button", name="Make 4 pictures").click()
    expect(page.locator("td button")).to_have_count(4)
    done(page)
    prompts = [one["prompt"] for one in job(opened, "compare")["requests"]]
    assert prompts == ["a fox", "a fox, in snow", "a fox, at night", "a fox, in snow, at night"]


def test_a_wrong_axis_is_told_before_anything_is_made(visit: Open) -> None:
    page = visit().go("compare")
    page.get_by_label("Prompt", exact=True).fill("a fox")
    page.get_by_label("Values").first.fill("4, many")
    expect(page.get_by_text("many: must be a number")).to_be_visible()
    expect(page.get_by_role("button", name="Make the pictures")).to_be_disabled()


# Models and key


def test_a_model_is_inspected_and_switched_to(visit: Open, studio: Path) -> None:
    with serving(studio, "--models", "models", "--gallery", "elsewhere") as address:
        opened = visit(address)
        page = opened.go("models")
        page.get_by_role("list", name="Models").get_by_role("button", name="another").click()
        about = page.get_by_role("region", name="About the model")
        expect(about).to_contain_text("unet")  # it is read in a process of its own
        about.get_by_role("button", name="Switch to this").click()
        expect(about.get_by_text("loaded", exact=True)).to_be_visible()
        expect(page.get_by_role("link", name="Model: another")).to_be_visible()
        opened.go("create")
        prompt(page, "a fox", 2)
        page.get_by_role("button", name="Make the picture").click()
        page.get_by_role("button", name="Reuse all").wait_for()
        opened.context.close()  # before the server: a page that loses it says so


def test_a_server_with_a_key_asks_for_it(visit: Open, studio: Path) -> None:
    with serving(studio, "--key", "open sesame", "--gallery", "locked") as address:
        opened = visit(address)
        page = opened.page
        page.goto(address)
        dialog = page.get_by_role("dialog", name="Key")
        dialog.wait_for()
        for _ in range(3):  # a browser lets one refuse to be closed once
            page.keyboard.press("Escape")
            page.wait_for_timeout(50)
        dialog.get_by_label("Key").fill("wrong")
        dialog.get_by_role("button", name="Go on").click()
        expect(dialog.get_by_role("alert")).to_be_visible()
        dialog.get_by_label("Key").fill("open sesame")
        dialog.get_by_role("button", name="Go on").click()
        expect(dialog).to_have_count(0)
        prompt(page, "a fox", 2)
        page.get_by_role("button", name="Make the picture").click()
        expect(page.get_by_role("figure").get_by_role("img", name="a fox")).to_be_visible()
        # a refusal is logged by the browser itself, whatever a page does with it
        opened.said[:] = [line for line in opened.said if "status of 401" not in line]
        opened.context.close()  # before the server: a page that loses it says so


# Explain


def told(page: Page) -> Locator:
    """The sections of the story on the page."""
    sections = page.locator("mz-story section")
    sections.first.wait_for()
    return sections


def test_a_story_is_made_told_and_kept_over_a_reload(visit: Open) -> None:
    opened = visit()
    page = opened.go("explain")
    prompt(page, "a red fox", 6)
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_label("Seed", exact=True).press("Tab")
    page.get_by_role("button", name="Make it and explain it").click()
    count = told(page).count()
    story = got(opened, f"/jobs/{job(opened, 'explain')['id']}/story")
    assert count == len(story["sections"])
    assert ["seed", "5"] in story["facts"]
    page.get_by_role("link", name="U-Net").click()
    expect(page.locator("mz-story #steps h2")).to_be_in_viewport()
    assert page.url.endswith("#explain"), "links of the story are not views"
    fox = page.locator("mz-story #steps button.chip", has_text="fox")
    fox.click()
    expect(page.locator("mz-story #steps .over")).to_be_visible()
    page.get_by_role("slider", name="step", exact=True).press("Home")
    expect(page.locator("mz-story output.step")).to_contain_text("step 1:")
    page.reload()
    assert told(page).count() == count
    with page.expect_download() as kept:
        page.get_by_role("link", name="Save as a page").click()
    assert kept.value.path().read_text().startswith("<!doctype html>")


def test_telling_can_be_stopped(visit: Open) -> None:
    page = visit().go("explain")
    prompt(page, "a slow fox", 1000)
    page.get_by_role("button", name="Make it and explain it").click()
    expect(page.locator(".plate img.is-preview")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.locator("mz-story")).to_have_count(0)


def test_a_finished_picture_is_explained_by_another_model(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a blue bird", 3)
    page.get_by_role("button", name="Make the picture").click()
    page.get_by_role("button", name="Explain", exact=True).click()
    told(page)
    made, again = (job(opened, place)["images"][0] for place in ("create", "explain"))
    assert (picture(opened, made["url"]) == picture(opened, again["url"])).all()
    page.get_by_label("Model", exact=True).select_option("another")
    page.get_by_role("button", name="Make it and explain it").click()
    expect(page.locator("mz-story .facts").first).to_contain_text("another")
    # and a picture by the model that made it, whichever is loaded
    before = job(opened, "explain")
    opened.go("gallery")
    page.get_by_role("list", name="Pictures").get_by_role("button").first.click()
    with page.expect_request("**/api/v1/jobs") as sent:
        page.get_by_role("dialog", name="Picture").get_by_role("button", name="Explain", exact=True).click()
    others = {one["name"]: one["id"] for one in got(opened, "/models")["models"]}
    assert json.loads(sent.value.post_data or "")["model"] == others["another"]
    while (now := job(opened, "explain"))["id"] == before["id"] or now["state"] != "done":
        page.wait_for_timeout(50)
    assert (picture(opened, before["images"][0]["url"]) == picture(opened, now["images"][0]["url"])).all()


def test_a_picture_made_from_one_that_is_gone_is_not_made_from_nothing(visit: Open, studio: Path) -> None:
    opened = visit()
    page = opened.go("edit")
    open_photo(page, studio / "photo.png")
    page.get_by_label("What it shows instead").fill("a fox of the photo")
    set_more(page, "Steps", "2")
    page.get_by_role("button", name="Make it again").click()
    page.get_by_role("button", name="Go on with this").wait_for()

    def a_day_later(route: Route) -> None:
        """What the server answers once the upload is no longer kept."""
        answer = route.fetch()
        found = answer.json()
        found["request"]["image"] = {"sha256": found["record"]["parents"][0]}
        route.fulfill(response=answer, json=found)

    page.route(f"**/api/v1/images/{job(opened, 'edit')['images'][0]['id']}", a_day_later)
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if one.url.endswith("/jobs") else None)
    opened.go("gallery")
    page.get_by_label("Search in prompts").fill("fox of the photo")
    found = page.get_by_role("list", name="Pictures").get_by_role("button")
    expect(found).to_have_count(1)
    found.click()
    dialog = page.get_by_role("dialog", name="Picture")
    for name in ("Reuse all", "Explain"):
        dialog.get_by_role("button", name=name, exact=True).click()
        expect(page.get_by_text("What this picture was made from is no longer here").last).to_be_visible()
        page.get_by_role("button", name="Dismiss").evaluate_all("(all) => all.forEach((one) => one.click())")
    expect(dialog).to_be_visible()
    assert asked == []


# Everybody


def violations(page: Page) -> list[tuple[str, list[str]]]:
    """Rules of axe-core that the page breaks, and where."""
    axe: Any = import_module("axe_playwright_python.sync_playwright")  # Any: untyped
    response: Any = axe.Axe().run(page).response  # Any: as above
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in response["violations"]]


VIEWS = ("create", "edit", "gallery", "compare", "explain", "models")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_breaks_no_rule_of_accessibility(view: str, scheme: str, visit: Open, studio: Path) -> None:
    """By axe-core: names, roles, contrast, landmarks, and more."""
    opened = visit(color_scheme=scheme)
    page = opened.go(view)
    if view == "edit":
        open_photo(page, studio / "photo.png")
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    page.wait_for_timeout(300)  # for transitions, whose colours are half-way
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_story_breaks_no_rule_of_accessibility(scheme: str, visit: Open) -> None:
    opened = visit(color_scheme=scheme)
    page = opened.go("explain")
    prompt(page, "a red fox in snow", 3)
    page.get_by_role("button", name="Make it and explain it").click()
    told(page)
    page.locator("mz-story #steps button.chip", has_text="fox").click()
    page.locator("mz-story #steps .layer").first.click()
    page.wait_for_timeout(300)
    assert opened.said == []
    assert violations(page) == []
    opened.said.clear()  # axe-core writes the style sheet of a shadow root into a style element, which is refused


def test_a_dialog_breaks_no_rule_of_accessibility(visit: Open) -> None:
    opened = visit()
    made_alone(opened, {"prompt": "a fox", "steps": 1})
    page = opened.go("gallery")
    page.get_by_role("list", name="Pictures").get_by_role("button").first.click()
    page.get_by_role("dialog", name="Picture").wait_for()
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


FOCUSED = """() => {
  const one = document.activeElement;
  return one.labels?.[0]?.innerText.split("\\n")[0] || one.getAttribute("aria-label") || one.innerText;
}"""


def test_a_picture_can_be_made_with_the_keyboard_alone(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    page.locator("body").press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    order: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(str(page.evaluate(FOCUSED)).strip())
        if order[-1] == "Make the picture":
            break
    places = [order.index(name) for name in ("Create", "Models", "Prompt", "Without", "Pictures", "Seed", "More")]
    assert places == sorted(places), order
    assert order[-1] == "Make the picture"
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("a fox by keyboard")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("figure").get_by_role("img", name="a fox by keyboard")).to_be_visible()


SIZES = {"desktop": {"width": 1366, "height": 768}, "phone": {"width": 390, "height": 844}}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_fits_the_screen(view: str, size: str, visit: Open, studio: Path) -> None:
    """Nothing sticks out to the side, and what is pressed most is on the screen and large enough for a finger."""
    page = visit(viewport=SIZES[size], has_touch=size == "phone").go(view)
    if view == "edit":
        open_photo(page, studio / "photo.png")
    page.wait_for_timeout(200)
    wide = page.evaluate("() => document.scrollingElement.scrollWidth - innerWidth")
    assert wide <= 0
    for tab in page.get_by_role("navigation").get_by_role("link").all():
        expect(tab).to_be_in_viewport(ratio=1)
        box = tab.bounding_box()
        assert box is not None
        assert box["height"] >= 44
    if view in {"create", "edit", "compare", "explain"}:
        expect(page.locator(".primary")).to_be_in_viewport(ratio=1)


def test_on_a_phone_a_comparison_comes_into_sight(visit: Open) -> None:
    page = visit(viewport=SIZES["phone"], has_touch=True).go("compare")
    page.get_by_label("Prompt", exact=True).fill("a red fox")
    page.get_by_label("Values").first.fill("2, 3")
    page.get_by_role("button", name="Make 2 pictures").click()
    page.wait_for_function("() => scrollY > 0")
    expect(page.get_by_role("region", name="Grid of pictures")).to_be_in_viewport()
    done(page)


def test_on_a_phone_a_finished_story_comes_into_sight(visit: Open) -> None:
    """One that was asked for elsewhere: nothing has scrolled to its place yet."""
    page = visit(viewport=SIZES["phone"], has_touch=True).go()
    prompt(page, "a red fox", 3)
    page.get_by_role("button", name="Make the picture").click()
    page.get_by_role("button", name="Explain", exact=True).click()
    told(page)
    page.wait_for_function("() => scrollY > 0")
    expect(page.locator("mz-story h1")).to_be_in_viewport()


def test_the_way_back_leads_out_of_a_picture(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    prompt(page, "a red fox", 1)
    page.get_by_role("button", name="Make the picture").click()
    page.get_by_role("link", name="Gallery").click()
    page.locator("mz-gallery img").first.click()
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog", name="Picture")).to_be_hidden()
    expect(page.get_by_role("button", name="Make the picture")).to_be_visible()


def test_colours_follow_the_system_and_the_button(visit: Open) -> None:
    opened = visit(color_scheme="dark")
    page = opened.go()

    def paper() -> int:
        colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(","))

    assert paper() < 120
    page.get_by_role("button", name="Colours: light or dark as the system").click()
    assert paper() > 600
    page.reload()
    page.locator(".state.is-on").wait_for()
    assert paper() > 600, "the choice is kept"


def test_a_prompt_is_text_and_never_markup(visit: Open) -> None:
    opened = visit()
    page = opened.go()
    text = '<img src=x onerror="document.title=1"><script>document.title=2</script>${7*7}'
    prompt(page, text, 1)
    page.get_by_role("button", name="Make the picture").click()
    page.get_by_role("button", name="Details").click()
    expect(page.get_by_role("dialog", name="Picture").locator("p.words")).to_have_text(text)
    assert page.title().endswith("mezzotint")


def test_a_page_of_another_policy_would_be_caught(visit: Open) -> None:
    """The console rule notices what the policy refuses: an inline style that a script writes as an attribute."""
    opened = visit()
    page = opened.go()
    page.evaluate("() => document.body.setAttribute('style', 'color: red')")
    page.wait_for_timeout(100)
    assert any("Content Security Policy" in line for line in opened.said)
    opened.said.clear()
