"""Picture sets: every layout gives the same pictures; selection, damage and silence are handled by name."""

import json
import logging
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from mezzotint.data.buckets import BucketRule
from mezzotint.data.drawing import encoded
from mezzotint.data.filters import Bounds, Filters
from mezzotint.data.pictures import PictureSet, decoded, read_pictures, write_folder
from mezzotint.errors import ConfigError, MezzotintError

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def rows() -> list[dict[str, object]]:
    """Three flat pictures with a caption and a column each."""
    return [
        {"key": name, "captions": [f"a {name} square", name], "tone": "warm" if name == "red" else "cold"}
        for name in COLORS
    ]


def flat(name: str, size: int = 8) -> bytes:
    return encoded(Image.new("RGB", (size, size), COLORS[name]))


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """The pictures as parquet, images as Hugging Face stores them."""
    table = [{**row, "image": {"bytes": flat(str(row["key"])), "path": "x.webp"}} for row in rows()]
    arrow, files = import_module("pyarrow"), import_module("pyarrow.parquet")  # without types
    files.write_table(arrow.Table.from_pylist(table), tmp_path / "set.parquet")
    return tmp_path / "set.parquet"


def test_all_layouts_give_the_same_pictures(parquet: Path, tmp_path: Path) -> None:
    listed, texts = tmp_path / "listed", tmp_path / "texts"
    for folder in (listed, texts):
        folder.mkdir()
        for name in COLORS:
            (folder / f"{name}.webp").write_bytes(flat(name))
    lines = [json.dumps({**row, "file_name": f"{row['key']}.webp"}) for row in rows()]
    (listed / "metadata.jsonl").write_text("\n".join(lines))
    for name in COLORS:
        (texts / f"{name}.txt").write_text(f"a {name} square\n{name}\n")
    sets = [read_pictures(path) for path in (parquet, listed, texts)]
    for name, color in COLORS.items():
        for found in sets:
            at = next(i for i, picture in enumerate(found.pictures) if name in picture.key)
            assert found.pictures[at].captions == (f"a {name} square", name)
            assert torch.equal(found.pixels([at], 4)[0, :, 1, 2], torch.tensor(color, dtype=torch.uint8))
    assert sets[0].fingerprint() == sets[1].fingerprint()


def test_select_by_value_and_by_siblings(parquet: Path) -> None:
    found = read_pictures(parquet)
    assert [p.key for p in found.select({"tone": ("cold",)}).pictures] == ["green", "blue"]
    assert [p.key for p in found.select({}, by="tone", at_least=2).pictures] == ["green", "blue"]
    with pytest.raises(ConfigError, match="no column 'style'; there are key, tone"):
        found.select({"style": ("flat",)})
    with pytest.raises(ConfigError, match="none of 3 pictures is left"):
        found.select({"tone": ("hot",)})


def test_damaged_picture_is_named_and_replaced(parquet: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = list(read_pictures(parquet).pictures)
    pictures[1] = pictures[1]._replace(read=lambda: flat("green")[:20])
    with caplog.at_level(logging.WARNING):
        pixels = PictureSet(tuple(pictures)).pixels([1], 4)
    assert torch.equal(pixels[0, :, 0, 0], torch.tensor(COLORS["blue"], dtype=torch.uint8))
    assert "green cannot be decoded" in caplog.text


def test_set_without_a_readable_picture_is_an_error(parquet: Path) -> None:
    pictures = tuple(p._replace(read=lambda: b"no picture") for p in read_pictures(parquet).pictures)
    with pytest.raises(MezzotintError, match="no picture of the set can be decoded"):
        PictureSet(pictures).pixels([0], 4)


def test_fingerprint_follows_captions_and_pixels(parquet: Path) -> None:
    found = read_pictures(parquet)
    reworded = list(found.pictures)
    reworded[0] = reworded[0]._replace(captions=("other",))
    repainted = list(found.pictures)
    repainted[0] = repainted[0]._replace(read=lambda: flat("blue"))
    prints = {
        found.fingerprint(),
        PictureSet(tuple(reworded)).fingerprint(),
        PictureSet(tuple(repainted)).fingerprint(),
    }
    assert len(prints) == 3


def test_picture_without_caption_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(flat("red"))
    with pytest.raises(
        MezzotintError, match=r"1 of 1 pictures have no caption, the first is 'a\.webp'; give each a \.txt file"
    ):
        read_pictures(tmp_path)


def test_decoded_is_centred_and_white_behind() -> None:
    wide = Image.new("RGBA", (12, 4), (0, 0, 0, 0))
    wide.paste((255, 0, 0, 255), (4, 0, 6, 4))
    square = decoded(encoded(wide), 4)  # the middle third: red, red, white, white
    expected = torch.tensor([[255, 255, 255, 255], [0, 0, 255, 255], [0, 0, 255, 255]], dtype=torch.uint8)
    assert torch.equal(square[:, 2], expected)


def test_table_of_addresses_can_be_curated(tmp_path: Path) -> None:
    """LAION's parquet: columns and no pictures."""
    table = [{"TEXT": f"fox {i}", "WIDTH": 600, "HEIGHT": 500 + i, "punsafe": i / 40} for i in range(40)]
    arrow, files = import_module("pyarrow"), import_module("pyarrow.parquet")  # without types
    files.write_table(arrow.Table.from_pylist(table), tmp_path / "laion.parquet")
    rule = Filters(punsafe=Bounds(at_most=0.5), size=Bounds(at_least=512), readable=False)
    kept, card = read_pictures(tmp_path / "laion.parquet").curated(rule)
    assert [p.captions[0] for p in kept.pictures] == [f"fox {i}" for i in range(12, 21)]
    assert [(gate.gate, gate.refused) for gate in card.gates] == [("punsafe", 19), ("size", 12)]
    with pytest.raises(MezzotintError, match="no picture of the set can be decoded"):
        kept.pixels([0], 8)


def test_placed_leaves_out_what_has_no_size(parquet: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = list(read_pictures(parquet).pictures)
    pictures[1] = pictures[1]._replace(read=lambda: b"no picture")
    with caplog.at_level(logging.WARNING):
        found, places = PictureSet(tuple(pictures)).placed(BucketRule(resolution=64))
    assert [p.key for p in found.pictures] == ["red", "blue"]
    assert [place.original for place in places] == [(8, 8), (8, 8)]
    assert "green is left out" in caplog.text


def test_views_cut_each_picture_where_its_key_says(parquet: Path) -> None:
    found = read_pictures(parquet)
    wide = [p._replace(read=lambda: encoded(Image.new("RGB", (900, 64)))) for p in found.pictures]
    rule = BucketRule(resolution=64, shortest=64, longest=64)
    views = [[place.left for place in PictureSet(tuple(wide)).placed(rule, view)[1]] for view in (0, 1, 0)]
    assert views[0] == views[2] != views[1]
    assert PictureSet(tuple(wide[::-1])).placed(rule, 0)[1][0].left == views[0][-1]
    assert [place.left for place in PictureSet(tuple(wide)).placed(rule)[1]] == [418] * 3


def test_damaged_cut_is_replaced_within_its_bucket(parquet: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"red": (8, 8), "green": (32, 8), "blue": (8, 8)}
    pictures = [
        p._replace(read=partial(encoded, Image.new("RGB", sizes[p.key], COLORS[p.key])))
        for p in read_pictures(parquet).pictures
    ]
    found, places = PictureSet(tuple(pictures)).placed(BucketRule(resolution=64, step=32))
    broken = [found.pictures[0]._replace(read=lambda: b"no picture"), *found.pictures[1:]]
    with caplog.at_level(logging.WARNING):
        cut = PictureSet(tuple(broken)).cut([0], places)
    assert torch.equal(cut[0, :, 3, 3], torch.tensor(COLORS["blue"], dtype=torch.uint8))
    assert "red cannot be decoded and is replaced" in caplog.text
    alone = PictureSet((broken[0], found.pictures[1]))
    with pytest.raises(MezzotintError, match="no picture of bucket 64x64 can be decoded"):
        alone.cut([0], places[:2])


def test_written_set_is_the_set(tmp_path: Path) -> None:
    for name in ("red", "green"):
        (tmp_path / f"{name}.webp").write_bytes(flat(name))
        (tmp_path / f"{name}.txt").write_text(f"a {name} square\na square")
    (tmp_path / "blue.webp").write_bytes(b"no picture")
    (tmp_path / "blue.txt").write_text("a blue square")
    found = read_pictures(tmp_path)
    write_folder(found, out := tmp_path / "out")
    again = read_pictures(out)
    assert [p.captions for p in again.pictures] == [("a green square", "a square"), ("a red square", "a square")]
    assert [p.key for p in again.pictures] == ["green.webp", "red.webp"]
    assert torch.equal(again.pixels([0, 1], 8), found.pixels([1, 2], 8))
    assert (out / "prompts.txt").read_text().splitlines() == ["a green square", "a red square"]
    with pytest.raises(ConfigError, match="has content; name a new folder"):
        write_folder(found, out)
