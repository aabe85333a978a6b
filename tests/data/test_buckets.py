"""Aspect-ratio buckets: their sizes, which is nearest, and that what is cut lies inside the picture."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.data.buckets import BucketRule, Placement, histogram
from mezzotint.data.sample import Size
from mezzotint.errors import ConfigError

XL = BucketRule(resolution=1024)
SIZES = st.builds(Size, st.integers(1, 6000), st.integers(1, 6000))
DRAWS = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)


def test_sizes_of_xl() -> None:
    sizes = XL.sizes()
    assert {(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (640, 1536), (512, 2048)} <= set(sizes)
    assert {Size(s.height, s.width) for s in sizes} == set(sizes)
    assert all(s.width % 64 == 0 and s.height % 64 == 0 and s.width * s.height <= 1024**2 for s in sizes)
    assert all(min(a.width, a.height) >= 512 for a in sizes)
    assert all((s.width + 64) * s.height > 1024**2 or s.width * (s.height + 64) > 1024**2 for s in sizes)
    assert all(a.width / a.height < b.width / b.height for a, b in pairwise(sizes))


@given(size=SIZES)
def test_bucket_is_the_nearest_in_log_ratio(size: Size) -> None:
    def distance(s: Size) -> float:
        return abs(math.log(s.width / s.height) - math.log(size.width / size.height))

    assert distance(XL.bucket(size)) == min(map(distance, XL.sizes()))
    turned = XL.bucket(Size(size.height, size.width))
    assert distance(Size(turned.height, turned.width)) == pytest.approx(distance(XL.bucket(size)))


@given(size=SIZES, draw=DRAWS)
@pytest.mark.parametrize("is_enlarged", [True, False])
def test_cuts_lie_inside_and_keep_the_shape(size: Size, draw: tuple[float, float], is_enlarged: bool) -> None:
    place = BucketRule(resolution=512, is_enlarged=is_enlarged).place(size, draw)
    assert 0 <= place.left <= place.resized.width - place.target.width
    assert 0 <= place.top <= place.resized.height - place.target.height
    assert min(r - t for r, t in zip(place.resized, place.target, strict=True)) == 0
    for resized, side, other, other_side in (
        (place.resized.width, size.width, place.resized.height, size.height),
        (place.resized.height, size.height, place.resized.width, size.width),
    ):
        assert resized == pytest.approx(other * side / other_side, abs=0.5 * (1 + side / other_side))
    if not is_enlarged and min(size) >= 64:
        assert place.resized.width <= size.width
        assert place.resized.height <= size.height


def test_cuts_reach_both_ends() -> None:
    rule, wide = BucketRule(resolution=64, shortest=64, longest=64), Size(100, 50)
    lefts = [rule.place(wide, (draw, 0.5)).left for draw in (0.0, 0.5, 1 - 1e-9)]
    assert lefts == [0, 32, 64]


def test_conditioning_of_xl_is_in_the_order_of_the_model() -> None:
    place = Placement(Size(1600, 900), Size(1365, 768), 0, 11, Size(1344, 768))
    assert XL.place(Size(1600, 900)) == place
    assert place.ids == (900, 1600, 0, 11, 768, 1344)
    assert place.refiner_ids(6.5) == (900, 1600, 0, 11, 6.5)


def test_histogram_counts_by_bucket() -> None:
    places = [XL.place(size) for size in (Size(10, 10), Size(20, 10), Size(7, 7))]
    assert histogram(places) == {Size(1024, 1024): 2, Size(1408, 704): 1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resolution": 500}, "buckets.resolution 500: no bucket fits; a multiple of step 64 such as 512"),
        ({"resolution": 512, "step": 12}, "buckets.step 12: must be a multiple of 8"),
        ({"resolution": 512, "longest": 448}, "buckets.resolution 512: must lie in 256 … 448"),
        ({"resolution": 512, "shortest": 100}, "buckets.shortest 100: no bucket fits"),
    ],
)
def test_rules_that_no_bucket_fits_are_refused(wrong: dict[str, Any], message: str) -> None:  # Any: keyword values
    with pytest.raises(ConfigError, match=message):
        BucketRule(**wrong)
