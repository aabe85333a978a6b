"""One picture: turned as its EXIF says, white behind, and one error for whatever is wrong with its bytes."""

import contextlib
import io
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mezzotint.data import sample
from mezzotint.data.filters import Bounds, Filters
from mezzotint.data.sample import DamagedPicture, Size, opened, picture_of, size_of, upright


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_orientation_is_applied_to_pixels_and_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    data = saved(noise(20, 10), "PNG", exif=exif)
    picture = picture_of({}, "turned", lambda: data)
    assert size_of(picture) == Size(10, 20)
    assert np.array_equal(np.asarray(opened(picture)), np.rot90(np.asarray(noise(20, 10)), -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_damage_of_any_kind_is_one_error(kind: str) -> None:
    data, draw = saved(noise(24, 24), kind), random.Random(kind)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            broken[draw.randrange(min(len(broken), 200))] = draw.randrange(256)
        for damaged in (bytes(broken), data[: draw.randrange(len(data))]):
            with contextlib.suppress(DamagedPicture):
                assert upright(damaged).mode == "RGB"  # a flipped bit may only change colours
    with pytest.raises(DamagedPicture, match="no picture"):
        upright(data[:20])


def test_unreadable_and_oversized_are_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> bytes:
        raise FileNotFoundError("no such file")

    with pytest.raises(DamagedPicture, match="cannot be read"):
        size_of(picture_of({}, "gone", gone))
    monkeypatch.setattr(sample, "MAX_PIXELS", 99)
    with pytest.raises(DamagedPicture, match="10x10 pixels; at most 99"):
        upright(saved(noise(10, 10), "PNG"))


def test_rows_of_laion_keep_their_numbers() -> None:
    row = {"URL": "http://x", "TEXT": "a fox", "WIDTH": 640, "HEIGHT": 480, "punsafe": 0.25, "NSFW": None, "ok": True}
    picture = picture_of(row, "0", bytes)
    assert picture.captions == ("a fox",)
    assert picture.columns == {"URL": "http://x"}
    assert picture.numbers == {"WIDTH": 640.0, "HEIGHT": 480.0, "punsafe": 0.25}
    gates = {g.name: g.value(picture) for g in Filters(punsafe=Bounds(), size=Bounds(), readable=False).gates()}
    assert gates == {"punsafe": 0.25, "size": 480}


def test_reading_and_curating_leave_torch_out() -> None:
    rooms = ("sample", "webdataset", "kohya", "filters", "card", "buckets")
    code = f"import sys, {', '.join(f'mezzotint.data.{room}' for room in rooms)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
