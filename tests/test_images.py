"""Pictures and the texts that they carry."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager

from mezzotint.errors import RequestError
from mezzotint.images import (
    EDITED,
    FORMATS,
    MADE,
    encode,
    feathered,
    fitted,
    open_image,
    pasted,
    read_infotext,
    read_metadata,
    source_type,
    to_array,
    to_image,
    to_mask,
    write_file,
    write_infotext,
)

ITEMS = {"Steps": 20, "Sampler": "DPM++ 2M", "CFG scale": 7.5, "Seed": 1, "Size": "64x64", "RNG": "CPU"}


def _noise(size: tuple[int, int] = (24, 16), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_uint8_survives_the_float_range():
    image = _noise()
    assert np.array_equal(np.asarray(to_image(to_array(image))), np.asarray(image))
    assert to_array(image).min() >= -1
    assert to_array(image).max() <= 1


def test_values_outside_the_range_are_clipped():
    white = to_image(np.full((3, 2, 2), 1.7, dtype=np.float32))
    assert white.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a red fox", "blurry"),
        ("a red fox", ""),
        ("", ""),
        ("", "blurry"),
        ("two\n\nparagraphs, with: signs", "more\nlines"),
        ("a: b, c: d", ""),
        ("日本の猫 <lora:x:1> 🦊", 'said "no"'),
    ],
)
def test_infotext_is_read_as_written(prompt: str, negative: str):
    text = write_infotext(prompt, negative, ITEMS | {"Lora hashes": "x: abc, y: def", "Model": None})
    read = read_infotext(text)
    assert (read.prompt, read.negative) == (prompt, negative)
    assert read.items == {key: str(value) for key, value in ITEMS.items()} | {"Lora hashes": "x: abc, y: def"}


def test_infotext_without_items_is_a_prompt():
    assert read_infotext("just words, and: one item") == ("just words, and: one item", "", {})


def test_small_numbers_are_written_in_plain_decimal():
    assert read_infotext(write_infotext("x", "", ITEMS | {"Eta": 1e-5})).items["Eta"] == "0.00001"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_reader_of_others_understands_our_files(kind: str, tmp_path: Path):
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encode(_noise(), write_infotext("a red fox, 🦊", "blurry", ITEMS), {"schema": 1, "seed": 3}, kind))
    parsed = ParserManager().parse(path)
    assert parsed is not None
    assert parsed.full_prompt == "a red fox, 🦊"
    assert parsed.full_negative_prompt == "blurry"
    assert parsed.samplers[0].name == "DPM++ 2M"
    ours = read_metadata(path)
    assert ours.infotext == ("a red fox, 🦊", "blurry", {key: str(value) for key, value in ITEMS.items()})
    assert ours.record == {"schema": 1, "seed": 3}


def test_a_picture_written_by_the_web_ui_is_read():
    path = Path(__file__).parent / "golden" / "a1111.png"
    infotext = read_metadata(path).infotext
    assert infotext is not None
    assert (infotext.prompt, infotext.negative) == ("photo of a duck", "monochrome")
    assert infotext.items["Sampler"] == "UniPC"
    assert infotext.items["Size"] == "512x400"


def test_unknown_keys_are_ignored_and_a_higher_schema_is_refused():
    assert read_metadata(encode(_noise(), record={"schema": 1, "later": 2})).record == {"schema": 1, "later": 2}
    with pytest.raises(RequestError, match="metadata of schema 2; this version reads up to 1; upgrade mezzotint"):
        read_metadata(encode(_noise(), record={"schema": 2}))


def test_json_of_others_is_not_taken_for_ours():
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = json.dumps({"version": "other"})
    _noise().save(out, "JPEG", exif=exif)
    assert read_metadata(out.getvalue()) == (None, None)


def test_a_photo_is_turned_upright():
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # camera held on its side
    _noise((24, 16)).save(out, "JPEG", exif=exif)
    assert open_image(out.getvalue()).size == (16, 24)


@pytest.mark.parametrize("name", ["cut.png", "text.png", "absent.png"])
def test_what_is_no_picture_is_refused_by_name(name: str, tmp_path: Path):
    (tmp_path / "cut.png").write_bytes(encode(_noise())[:200])
    (tmp_path / "text.png").write_text("<svg/>")
    reason = {"cut.png": "cannot be decoded", "text.png": "not a PNG", "absent.png": "no such file"}[name]
    with pytest.raises(RequestError, match=f"mask .*{name}.*{reason}"):
        open_image(tmp_path / name, "mask")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mezzotint.images.MAX_PIXELS", 100)
    with pytest.raises(RequestError, match="24x16 pixels; at most 100 are accepted"):
        open_image(encode(_noise()))


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fitting_gives_the_size(how: str, mode: str):
    assert fitted(_noise((31, 17), mode), 16, 24, how).size == (16, 24)  # pyright: ignore[reportArgumentType]


def test_padding_repeats_the_edge_and_cropping_keeps_the_centre():
    stripes = Image.fromarray(np.repeat(np.array([[0, 100, 200, 255]], dtype=np.uint8), 4, axis=0))
    assert np.asarray(fitted(stripes, 8, 4, "pad")).tolist() == [[0, 0, 0, 100, 200, 255, 255, 255]] * 4
    assert np.asarray(fitted(stripes, 2, 4, "crop")).tolist() == [[100, 200]] * 4


def test_pixels_outside_the_feathered_mask_are_the_inputs_own():
    original, made = _noise((64, 64)), Image.new("RGB", (64, 64), (255, 0, 255))
    mask = to_mask(Image.fromarray(np.pad(np.full((16, 16), 200, dtype=np.uint8), 24)))
    soft = feathered(mask, 4)
    result = np.asarray(pasted(original, made, soft))
    weight = np.asarray(soft)
    assert np.array_equal(result[weight == 0], np.asarray(original)[weight == 0])
    assert (result[mask == 1] == (255, 0, 255)).all()
    assert weight[24 - 9 : 24 + 16 + 9, 32].min() == 0  # it ends
    assert weight[:15].max() == 0


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "picture.png"
    write_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RequestError, match=r"picture.png' cannot be written: No space left on device"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file/picture.png' cannot be written: (Not a directory|File exists)"):
        write_file(tmp_path / "file" / "picture.png", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_carries_the_mark_of_how_it_was_made(kind: str) -> None:
    def marked(**request: object) -> str | None:
        record = {"schema": 1, "resolved": {"request": request}}
        return source_type(encode(Image.new("RGB", (8, 8)), "a\nSteps: 1", record, kind))

    assert marked() == MADE == "trainedAlgorithmicMedia"
    assert marked(image={"sha256": "0"}) == EDITED == "compositeWithTrainedAlgorithmicMedia"
    assert marked(mark=False) is None
    assert source_type(encode(Image.new("RGB", (8, 8)), "a\nSteps: 1", None, kind)) is None  # not ours to mark


SHEETS: list[tuple[list[dict[str, object]], str | None]] = [
    ([{}, {}], MADE),
    ([{}, {"image": {"sha256": "0"}}], EDITED),
    ([{"mark": False}, {"mark": False}], None),
    ([{"mark": False}, {}], MADE),
]


@pytest.mark.parametrize(("requests", "wanted"), SHEETS)
def test_a_sheet_is_marked_as_its_pictures_are(requests: list[dict[str, object]], wanted: str | None) -> None:
    record = {"schema": 1, "cells": [{"request": request} for request in requests]}
    assert source_type(encode(Image.new("RGB", (8, 8)), "a\nSteps: 1", record)) == wanted
