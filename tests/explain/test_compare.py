"""Two pictures from one seed."""

from typing import Any  # Any: JSON

import pytest

from mezzotint.errors import RequestError
from mezzotint.explain.compare import Side, compare, parsed
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System


def _sides(system: System, first: dict[str, Any], second: dict[str, Any]) -> tuple[Side, Side]:  # Any: any field
    common: dict[str, Any] = {"prompt": "a fox", "steps": 3, "seed": 4, "sampler": "euler"}  # Any: any field
    one, two = common | first, common | second
    return Side("one", system, Request(**one)), Side("two", system, Request(**two))


def _distances(system: System, first: dict[str, Any], second: dict[str, Any]) -> list[list[float]]:  # Any: any field
    story = compare(*_sides(system, first, second)).to_json()
    curves = story["sections"][-1]["blocks"][0]
    return [[point[1] for point in line["points"]] for line in curves["lines"]]


def test_equal_requests_never_part(tiny: System) -> None:
    estimates, latents = _distances(tiny, {}, {})
    assert set(estimates + latents) == {0.0}


def test_other_guidance_starts_from_the_same_noise_and_then_parts(tiny: System) -> None:
    estimates, latents = _distances(tiny, {"guidance": 1.0}, {"guidance": 7.5})
    assert latents[0] == 0.0
    assert estimates[0] > 0
    assert latents[1] > 0


def test_what_is_different_is_named(tiny: System) -> None:
    story = compare(*_sides(tiny, {"sampler": "euler"}, {"sampler": "heun", "steps": 2})).to_json()
    table = story["sections"][0]["blocks"][1]
    assert {row[0] for row in table["rows"]} >= {"sampler", "steps"}
    assert "no distances" in story["sections"][-1]["blocks"][-1]["text"]


def test_different_seeds_are_refused(tiny: System) -> None:
    with pytest.raises(RequestError, match="seeds 4 and 5: a comparison needs one seed"):
        compare(*_sides(tiny, {}, {"seed": 5}))


def test_sides_are_prompts_or_fields() -> None:
    assert parsed("a red fox") == ("prompt", "a red fox")
    assert parsed("guidance=3") == ("guidance", "3")
    assert parsed("model=a/b=c") == ("model", "a/b=c")
    assert parsed("2 + 2 = 4") == ("prompt", "2 + 2 = 4")
    with pytest.raises(RequestError, match="did you mean 'guidance'"):
        parsed("guidence=3")
