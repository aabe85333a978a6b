"""The icon set's description, its English and its drawings; no package is fetched."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mezzotint.data.drawing import measured_colors, rasterised, svg_document, thumbnail
from mezzotint.data.icons import choice, sources
from mezzotint.data.npm import Package, unpacked
from mezzotint.data.phrases import article, captions, concept_words, noun_phrase, toned
from mezzotint.errors import MezzotintError

WORDS = sources().words


def test_description_is_complete() -> None:
    known = sources()
    assert len(known.heldout) == 835
    assert all(style.package in known.packages for style in known.styles.values())
    assert {key.split("--")[0] for key in known.heldout} <= set(known.styles)
    assert all(len(package.sha256) == 64 for package in known.packages.values())


def test_choices_never_change() -> None:
    """Held-out keys name the ink and the skin tone that the hash picks."""
    assert [choice("col", "1F34E", "bw", of=10), choice("tone", "noto", "1F44B", of=5)] == [1, 1]


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("automobile", "a car"),
        ("red apple", "a red apple"),
        ("octopus", "an octopus"),
        ("scissors", "scissors"),
        ("broccoli", "broccoli"),
        ("man: beard", "a man with a beard"),
        ("woman: red hair", "a woman with red hair"),
        ("family: man, woman, boy", "a family of a man, a woman and a boy"),
        ("three o’clock", "a clock showing three o'clock"),
        ("warning", "a warning sign"),
        ("Mount Fuji", "Mount Fuji"),
        ("unicorn", "a unicorn"),
        ("smiling face with smiling eyes", "a smiling face with smiling eyes"),
    ],
)
def test_names_become_english(label: str, said: str) -> None:
    assert noun_phrase(concept_words(label, WORDS), WORDS) == said


def test_articles_follow_sound() -> None:
    assert [article(word) for word in ("hourglass", "UFO", "x-ray", "user", "eye")] == ["an", "a", "an", "a", "an"]


def test_tones_come_before_a_direction() -> None:
    assert toned("woman running facing right", "dark") == "woman running with dark skin tone facing right"
    assert toned("man with white cane", "light") == "man with white cane and light skin tone"


def test_captions_name_the_style_but_the_last() -> None:
    said = captions(
        "red apple", ("noto emoji", "shiny emoji"), ink="", colors=["red"], keywords=["fruit"], seed=1, words=WORDS
    )
    assert said == (
        "a red apple, noto emoji",
        "a noto emoji of a red apple",
        "a red apple, shiny emoji, on a white background",
        "red apple, fruit, shiny emoji",
        "a red apple, noto emoji, red",
        "a red apple",
    )


def test_svg_is_padded_turned_and_inked() -> None:
    """The left half of a wide box, mirrored: drawn right of the middle, not stretched."""
    icon = {"body": '<path d="M0 0h8v8H0z" fill="currentColor"/>', "width": 16, "height": 8, "hFlip": True}
    drawn = rasterised(lambda pixels: svg_document(icon, pixels, "#ff0000"), 16)
    assert drawn.getpixel((12, 8)) == (255, 0, 0, 255)
    assert drawn.getpixel((4, 8)) == (0, 0, 0, 0)
    assert drawn.getpixel((12, 1)) == (0, 0, 0, 0)


def test_broken_svg_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="root node"):
        rasterised(lambda pixels: "<svg", 16)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((230, 20, 20), "red"), ((245, 140, 10), "orange"), ((250, 215, 0), "yellow"), ((30, 160, 60), "green"),
        ((30, 90, 220), "blue"), ((130, 50, 190), "purple"), ((255, 110, 180), "pink"), ((138, 82, 38), "brown"),
        ((140, 140, 140), "gray"), ((255, 255, 255), "white"), ((10, 10, 10), "black"),
    ],
)  # fmt: skip
def test_colors_have_their_names(rgb: tuple[int, int, int], name: str) -> None:
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((*rgb, 255), (2, 2, 14, 14))
    assert measured_colors(picture) == [name]


def test_thumbnail_by_block_means_is_exact() -> None:
    board = Image.new("L", (4, 4), 0)
    board.paste(200, (0, 0, 2, 2))
    assert list(thumbnail(board, 2).tobytes()) == [200, 0, 0, 0]


def test_package_is_verified_and_unpacked_from_the_cache(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some-thing-1.0.0.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("package/icons.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    digest = hashlib.sha256((tmp_path / "some-thing-1.0.0.tgz").read_bytes()).hexdigest()
    package = Package(name="@some/thing", version="1.0.0", sha256=digest)
    assert (unpacked(package, tmp_path) / "icons.json").read_text() == "{}"
    with pytest.raises(MezzotintError, match="delete the file and try again"):
        unpacked(Package(name="@some/thing", version="1.0.0", sha256="0" * 64), tmp_path)


def test_missing_npm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MezzotintError, match=r"or put some-thing-1\.0\.0\.tgz into"):
        unpacked(Package(name="@some/thing", version="1.0.0", sha256="0" * 64), tmp_path)
