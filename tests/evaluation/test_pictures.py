"""Pictures to be judged: canonical order, every kind of file, and a clear answer for each that cannot be used."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import RequestError
from mezzotint.evaluation.pictures import Pixels, Unreadable, decode, list_pictures

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
RED: Pixels = np.full((4, 6, 3), (200, 30, 10), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]  # options differ by format
    return out.getvalue()


def png(value: int = 0) -> bytes:
    return encoded(Image.new("RGB", (2, 2), (value, value, value)))


def test_rgb_keeps_every_bit() -> None:
    found = decode(encoded(Image.fromarray(RED)))
    assert np.array_equal(found.pixels, RED)
    assert found.note == ""


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_grey_palette_and_opaque_alpha_become_rgb_silently(mode: str) -> None:
    grey = Image.new("L", (6, 4), 255)
    found = decode(encoded(grey.convert(mode)))
    assert np.array_equal(found.pixels, np.full((4, 6, 3), 255, np.uint8))
    assert found.note == ""


def test_transparent_parts_are_white_and_said_so() -> None:
    """Dropping alpha, the usual mistake, would show the colour that hides below it."""
    layered = Image.fromarray(np.dstack([RED, np.array([[0, 0, 0, 255, 255, 255]] * 4, np.uint8)]))
    found = decode(encoded(layered))
    assert np.array_equal(found.pixels[:, :3], np.full((4, 3, 3), 255))
    assert np.array_equal(found.pixels[:, 3:], RED[:, 3:])
    assert found.note == "transparent parts are white"


def test_a_palette_with_a_transparent_colour_is_on_white() -> None:
    paletted = Image.fromarray(RED).quantize(2)
    found = decode(encoded(paletted, "GIF", transparency=paletted.getpixel((0, 0))))
    assert np.array_equal(found.pixels, np.full((4, 6, 3), 255))


def test_16_bit_grey_keeps_its_range() -> None:
    """Pillow's own conversion cuts everything above 255."""
    wide = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = decode(encoded(Image.fromarray(wide)))
    assert found.pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    assert found.note == "16-bit grey reduced to 8 bits"


def test_cmyk_is_converted_and_said_so() -> None:
    found = decode(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG"))
    assert np.array_equal(found.pixels, np.full((4, 4, 3), 255))
    assert found.note == "converted from CMYK"


def test_orientation_is_left_as_it_is_and_said_so() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(Image.fromarray(RED), "PNG", exif=exif))
    assert found.pixels.shape == (4, 6, 3)
    assert found.note == "EXIF orientation is not applied"


def animation() -> bytes:
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<html>gone</html>", "is no picture of a known kind"),
        (encoded(Image.fromarray(NOISE))[:9000], "is damaged: .*truncated"),
        (animation(), r"is animated or has several pages \(3\)"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), r"has float pixels \(mode F\)"),
        (encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), "has pixels from 70000 to 70000"),
        (encoded(Image.new("1", (8200, 8200))), "has 8200x8200 pixels; at most 67,108,864"),
    ],
    ids=["empty", "html", "cut off", "animated", "float", "wide", "large"],
)  # fmt: skip
def test_what_cannot_be_used_says_why(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        decode(data)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "a.PNG", "z.jpeg", ".hidden.png", "notes.txt", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    assert list_pictures(tmp_path).names == ("a.PNG", "b/10.png", "b/2.png", "z.jpeg")


def test_a_zip_archive_gives_what_its_folder_gives(tmp_path: Path) -> None:
    folder, packed = tmp_path / "folder", tmp_path / "pictures.zip"
    folder.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        for value in (3, 1, 2):
            (folder / f"{value}.png").write_bytes(png(value))
            archive.writestr(f"{value}.png", png(value))
        archive.writestr("__MACOSX/1.png", b"resource fork")
    one, other = list_pictures(folder), list_pictures(packed)
    assert one.names == other.names == ("1.png", "2.png", "3.png")
    assert [source.read() for source in one.sources] == [source.read() for source in other.sources]


def test_a_damaged_entry_of_an_archive_costs_one_picture(tmp_path: Path) -> None:
    packed = tmp_path / "pictures.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1.png", png(1))
        archive.writestr("2.png", png(2))
    whole = packed.read_bytes()
    at = whole.index(b"IDAT")  # of the first picture: its checksum in the archive no longer fits
    packed.write_bytes(whole[:at] + b"idat" + whole[at + 4 :])
    first, second = list_pictures(packed).sources
    with pytest.raises(Unreadable, match="is damaged in the archive: Bad CRC"):
        first.read()
    assert decode(second.read()).pixels.max() == 2


def test_a_list_of_files_is_sorted_and_names_none_twice(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "cab"]
    for file in files:
        file.write_bytes(png())
    assert list_pictures(files).names == tuple(sorted(file.as_posix() for file in files))
    with pytest.raises(RequestError, match=r"a\.png' is in the list of pictures 2 times"):
        list_pictures([*files, files[1]])


def test_one_file_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(7))
    assert decode(list_pictures(tmp_path / "one.png").sources[0].read()).pixels.max() == 7


def test_nothing_is_an_error_that_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(RequestError, match=r"no pictures in it; files ending in \.bmp, \.gif"):
        list_pictures(tmp_path)
    with pytest.raises(RequestError, match="no such folder or file"):
        list_pictures(tmp_path / "gone")
    with pytest.raises(RequestError, match="an empty list of pictures"):
        list_pictures([])
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(RequestError, match="no readable zip archive"):
        list_pictures(tmp_path / "broken.zip")
