"""Filters: each gate is a law about one picture, so neither their order nor the set's changes what is left."""

import logging
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from mezzotint.data.drawing import encoded
from mezzotint.data.filters import Bounds, Captions, Duplicates, Filters, Gate, distinct, look, passed
from mezzotint.data.sample import Picture
from mezzotint.errors import ConfigError

ROWS = 1000
RULE = Filters(
    aesthetic=Bounds(at_least=5),
    pwatermark=Bounds(at_most=0.5),
    size=Bounds(at_least=512),
    columns={"luma": Bounds(at_least=0.25, keeps_missing=True)},
    captions=Captions(words=Bounds(at_least=2)),
    readable=False,
)


def nothing() -> bytes:
    raise OSError("only a row of a table")


def rows() -> list[Picture]:
    """A thousand rows without files: score i % 10, watermark i % 4 / 4, shorter side 256 or 512, luma for even i."""
    return [
        Picture(
            f"row-{i}",
            ("a fox",) if i % 7 else ("fox",),
            {},
            nothing,
            {"AESTHETIC_SCORE": i % 10, "pwatermark": i % 4 / 4, "WIDTH": 1024, "HEIGHT": 512 if i % 3 else 256}
            | ({} if i % 2 else {"luma": i % 8 / 8}),
        )
        for i in range(ROWS)
    ]


def textured(seed: int, size: int = 64) -> Image.Image:
    """Soft random shapes, unlike for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def stored(key: str, image: Image.Image) -> Picture:
    data = encoded(image)
    return Picture(key, (key,), {}, lambda: data)


def survivors(pictures: Sequence[Picture], gates: Sequence[Gate]) -> set[str]:
    for gate in gates:
        pictures = passed(pictures, gate).pictures
    return {picture.key for picture in pictures}


def test_every_gate_refuses_exactly_what_it_should() -> None:
    found = {gate.name: passed([RULE.said(p) for p in rows()], gate) for gate in RULE.gates()}
    assert {name: (f.judged, f.missing, f.refused) for name, f in found.items()} == {
        "aesthetic": (ROWS, 0, 500),  # 0 … 4 of 0 … 9
        "pwatermark": (ROWS, 0, 250),  # 0.75 of 0, 0.25, 0.5, 0.75: bounds themselves pass
        "columns.luma": (ROWS, 500, 125),  # 0 of 0, 0.25, 0.5, 0.75, and only for even rows
        "captions": (ROWS, 0, 143),  # 0, 7, … 994
        "size": (ROWS, 0, 334),  # 0, 3, … 999
    }


def test_order_of_the_gates_does_not_matter() -> None:
    pictures = [RULE.said(p) for p in rows()]
    expected = {
        f"row-{i}" for i in range(ROWS) if i % 10 >= 5 and i % 4 < 3 and i % 3 and i % 7 and (i % 2 or i % 8 >= 2)
    }
    gates = list(RULE.gates())
    for seed in range(10):
        assert survivors(pictures, random.Random(seed).sample(gates, len(gates))) == expected


def test_a_gate_that_looks_at_its_neighbours_is_caught() -> None:
    """The law above can fail: what is above the mean of what is left depends on what left before."""

    def relative(left: list[Picture], name: str) -> list[Picture]:
        mean = sum(p.numbers[name] for p in left) / len(left)
        return [p for p in left if p.numbers[name] >= mean]

    skewed = [p._replace(numbers={"a": float(i), "b": float(i * i % 97)}) for i, p in enumerate(rows())]
    assert relative(relative(skewed, "a"), "b") != relative(relative(skewed, "b"), "a")


@pytest.mark.parametrize("name", ["aesthetic", "AESTHETIC_SCORE", "aesthetic_score"])
def test_names_of_scores(name: str) -> None:
    gate = Filters(aesthetic=Bounds(at_least=5), readable=False).gates()[0]
    kept = [p._replace(numbers={name: score}) for p, score in zip(rows(), (4.9, 5.0, math.nan), strict=False)]
    assert [p.key for p in passed(kept, gate).pictures] == ["row-1"]
    assert passed(kept, gate).missing == 1


def test_captions_that_say_nothing_are_taken_away() -> None:
    rule = Filters(captions=Captions(words=Bounds(at_least=2, at_most=5), letters=0.5))
    said = (
        "IMG_0042.JPG",
        "see www.example.org now",
        "a red fox",
        "1234 5678 9",
        "狐と 月",
        "one two three four five six",
        " ",
    )
    assert rule.said(rows()[0]._replace(captions=said)).captions == ("a red fox", "狐と 月")


def test_size_comes_from_the_columns_or_else_from_the_file() -> None:
    gate = Filters(size=Bounds(at_least=48), readable=False).gates()[0]
    tall = stored("tall", Image.new("RGB", (40, 100)))
    told = tall._replace(numbers={"width": 640.0, "height": 480.0})
    assert [gate.value(tall), gate.value(told)] == [40, 480]
    assert Filters(aspect=Bounds(at_most=2), readable=False).gates()[0].value(tall) == 2.5


def test_damaged_file_costs_a_line_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    whole = stored("whole", textured(0))
    cut = whole._replace(key="cut", read=lambda: whole.read()[:-40])
    with caplog.at_level(logging.WARNING):
        found = passed([whole, cut], Filters().gates()[-1])
    assert [p.key for p in found.pictures] == ["whole"]
    assert [record.getMessage()[:16] for record in caplog.records] == ["cut is left out:"]


def test_duplicates_leave_the_largest_whatever_the_order() -> None:
    pictures = [stored(f"own-{seed}", textured(seed)) for seed in range(20)]
    pictures += [pictures[i]._replace(key=f"same-{i}") for i in range(3)]
    pictures += [stored(f"wide-{i}", textured(i, 128)) for i in range(3, 5)]
    expected = {f"own-{i}" for i in range(20) if i not in {3, 4}} | {"wide-3", "wide-4"}
    for seed in range(5):
        exact, near = distinct(random.Random(seed).sample(pictures, len(pictures)), Duplicates(distance=4))
        assert (exact.judged, exact.refused, near.judged, near.refused) == (25, 3, 22, 2)
        assert {p.key for p in near.pictures} == expected


def test_bands_find_every_pair_within_the_distance() -> None:
    """All pairs compared one by one give the same as bands of bits do; and far more than equal hashes would."""
    base = [textured(seed % 12) for seed in range(60)]
    rng = np.random.default_rng(1)
    noisy = [np.clip(np.asarray(b).astype(int) + rng.integers(-12, 13, (64, 64, 3)), 0, 255) for b in base]
    pictures = [stored(f"{i:02d}", Image.fromarray(n.astype(np.uint8))) for i, n in enumerate(noisy)]
    looks = [look(Image.fromarray(n.astype(np.uint8))) for n in noisy]

    def greedy(is_like: Callable[[int, int], bool]) -> list[str]:
        kept: list[int] = []
        for i in range(len(looks)):
            if not any(is_like(i, j) for j in kept):
                kept.append(i)
        return [f"{i:02d}" for i in kept]

    for distance in (0, 3, 6, 16):
        near = distinct(pictures, Duplicates(distance=distance))[1]
        assert [p.key for p in near.pictures] == greedy(lambda i, j, d=distance: looks[i].is_like(looks[j], d))
    assert len(distinct(pictures, Duplicates(distance=16))[1].pictures) == 12
    assert len(distinct(pictures, Duplicates(distance=0))[1].pictures) > 12


def test_equal_shapes_of_other_colours_are_no_duplicates() -> None:
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    assert look(red).shape == look(blue).shape
    assert distinct([stored("red", red), stored("blue", blue)], Duplicates(distance=8))[1].refused == 0


def test_rules_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ConfigError, match="at_least 6 is above at_most 5: nothing would be kept"):
        Bounds(at_least=6, at_most=5)
    with pytest.raises(ConfigError, match=r"duplicates\.distance 40: must lie in 0 … 16 bits"):
        Duplicates(distance=40)
