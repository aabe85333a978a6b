"""kohya's layouts: which value wins, what becomes a caption, how often pictures come, and what is refused by name."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from data.test_filters import textured
from mezzotint.data.buckets import BucketRule
from mezzotint.data.drawing import encoded
from mezzotint.data.kohya import SHUFFLES, Subset, read_folders, read_toml
from mezzotint.data.pictures import read_pictures
from mezzotint.errors import ConfigError, MezzotintError

TOML = """
[general]
caption_extension = '.txt'
keep_tokens = 1
enable_bucket = true

[[datasets]]
resolution = [512, 512]
batch_size = 4
keep_tokens = 2
bucket_no_upscale = true
shuffle_caption = false

  [[datasets.subsets]]
  image_dir = 'fox'
  class_tokens = 'sks fox'
  num_repeats = 3

  [[datasets.subsets]]
  image_dir = 'owl'
  keep_tokens = 3
  caption_prefix = 'a photo of'

  [[datasets.subsets]]
  image_dir = 'animal'
  class_tokens = 'animal'
  is_reg = true
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """Two foxes, one with a caption; an owl with one; three pictures for regularisation."""
    for folder, count in (("fox", 2), ("owl", 1), ("animal", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i}.webp").write_bytes(encoded(textured(i, 16)))
    (tmp_path / "fox" / "0.txt").write_text("a fox, in snow\nsecond line\n")
    (tmp_path / "owl" / "0.txt").write_text("an owl")
    (tmp_path / "set.toml").write_text(TOML)
    return tmp_path / "set.toml"


def test_innermost_value_wins(toml: Path) -> None:
    (dataset,) = read_toml(toml)
    assert [subset.keep_tokens for subset in dataset.subsets] == [2, 3, 2]
    assert [subset.num_repeats for subset in dataset.subsets] == [3, 1, 1]
    assert (dataset.resolution, dataset.batch_size) == (512, 4)
    assert dataset.buckets == BucketRule(resolution=512, shortest=256, longest=1024, is_enlarged=False)


def test_pictures_captions_and_repeats(toml: Path) -> None:
    found = read_pictures(toml).pictures
    assert Counter((p.key, p.captions) for p in found) == {
        ("fox/0.webp", ("a fox, in snow",)): 3,
        ("fox/1.webp", ("sks fox",)): 3,
        ("owl/0.webp", ("a photo of an owl",)): 1,
        ("animal/0.webp", ("animal",)): 3,  # three pictures taken in turn until there are as many as others: 7
        ("animal/1.webp", ("animal",)): 2,
        ("animal/2.webp", ("animal",)): 2,
    }
    assert {p.columns["role"] for p in found if "animal" in p.key} == {"regularisation"}


def test_tags_are_shuffled_and_dropped_but_for_those_kept() -> None:
    tags = [f"t{i}" for i in range(20)]
    subset = Subset(image_dir="x", keep_tokens=3, shuffle_caption=True)
    said = subset.captions(", ".join(tags), "key")
    assert len({*said}) == SHUFFLES
    assert all(s.split(", ")[:3] == tags[:3] and sorted(s.split(", ")) == sorted(tags) for s in said)
    assert said == subset.captions(",".join(tags), "key")
    assert said != subset.captions(", ".join(tags), "other")
    fewer = Subset(image_dir="x", keep_tokens=3, caption_tag_dropout_rate=0.5).captions(", ".join(tags), "key")
    assert all(s.split(", ")[:3] == tags[:3] for s in fewer)
    assert all(s.split(", ") == [tag for tag in tags if tag in s.split(", ")] for s in fewer)
    assert sum(len(s.split(", ")) - 3 for s in fewer) == pytest.approx(SHUFFLES * 17 / 2, abs=18)  # 3 deviations


def test_metadata_file_joins_caption_and_tags(toml: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"C:\\sets\\fox\\0": {"caption": "a fox", "tags": "snow, red"}}
    (toml.parent / "meta.json").write_text(json.dumps(rows))
    subset = Subset(image_dir="fox", metadata_file="meta.json")
    with caplog.at_level(logging.WARNING):
        assert [p.captions for p in subset.pictures(toml.parent)] == [("a fox, snow, red",)]
    assert "1.webp is not in meta.json" in caplog.text


def test_folders_name_their_repeats(tmp_path: Path) -> None:
    for name in ("2_sks fox", "1_owl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.webp").write_bytes(encoded(textured(0, 16)))
    assert Counter((p.key, p.captions) for p in read_pictures(tmp_path).pictures) == {
        ("1_owl/a.webp", ("owl",)): 1,
        ("2_sks fox/a.webp", ("sks fox",)): 2,
    }
    (tmp_path / "notes").mkdir()
    assert read_folders(tmp_path) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep_tokens = 1", "keep_token = 1", "general: unknown key 'keep_token'; did you mean 'keep_tokens'"),
        (
            "keep_tokens = 3",
            "flip_aug = true",
            r"datasets\[0\]\.subsets\[1\]\.flip_aug = True cannot be done here; store",
        ),
        ("num_repeats = 3", "num_repeats = '3'", r"subsets\[0\]\.num_repeats: '3' where int was expected"),
        ("num_repeats = 3", "num_repeats = 0", r"subsets\[0\]\.num_repeats 0: at least 1"),
        ("image_dir = 'owl'", "", r"datasets\[0\]\.subsets\[1\]: 'image_dir' is missing"),
        ("image_dir = 'owl'", "image_dir = 'eule'", "image_dir '.*eule': no such folder"),
        ("[512, 512]", "[768, 512]", r"datasets\[0\]\.resolution: \[768, 512\] where int was expected"),
        ("[general]", "[generel]", "unknown table 'generel'; did you mean 'general'"),
        ("[general]", "[general", "cannot be read"),
    ],
)
def test_what_is_wrong_is_refused_by_name(toml: Path, old: str, new: str, message: str) -> None:
    toml.write_text(TOML.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_pictures(toml)


def test_what_is_off_may_be_said(toml: Path) -> None:
    toml.write_text(TOML.replace("keep_tokens = 1", "color_aug = false\ncache_info = true", 1))
    assert len(read_pictures(toml)) == 14


def test_datasets_of_two_resolutions_are_two_runs(toml: Path) -> None:
    second = "\n[[datasets]]\nresolution = 768\n[[datasets.subsets]]\nimage_dir = 'owl'\n"
    toml.write_text(TOML + second)
    assert [dataset.resolution for dataset in read_toml(toml)] == [512, 768]
    with pytest.raises(ConfigError, match="its datasets differ in resolution or buckets"):
        read_pictures(toml)


def test_picture_without_any_caption_is_an_error(toml: Path) -> None:
    (toml.parent / "owl" / "0.txt").unlink()
    with pytest.raises(
        MezzotintError, match=r"0\.webp has no caption; write one beside it, or give its folder class_tokens"
    ):
        read_pictures(toml)
