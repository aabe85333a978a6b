"""What is asked for is checked before any work, in one line, and names what decides a number."""

from pathlib import Path
from typing import Any  # Any: fields of a spec

import pytest

from mezzotint.errors import RequestError
from mezzotint.evaluation.spec import METRICS, EvaluationSpec, read_spec, spec_of


def test_metrics_are_what_the_pictures_allow_unless_asked_for() -> None:
    assert EvaluationSpec(pictures=("a",), against="b").chosen == {"fid", "kid"}
    assert spec_of({"pictures": "a", "clip": "evaluator"}).chosen == {"clip"}
    assert spec_of({"pictures": "a", "against": "b", "clip": "c", "training": "t"}).chosen == {
        "fid", "kid", "clip", "copies",
    }  # fmt: skip
    assert spec_of({"pictures": "a", "against": "b", "metrics": "pr, dc"}).chosen == {"pr", "dc"}


def test_lists_may_be_written_with_commas_or_as_one_value() -> None:
    found = spec_of({"model": "m", "prompts": "icons", "clip": "c", "guidance": "1, 2.5,7", "steps": 20})
    assert (found.guidance, found.steps) == ((1.0, 2.5, 7.0), (20,))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "exactly one of pictures and model"),
        ({"pictures": "a", "model": "m", "clip": "c"}, "exactly one of pictures and model"),
        ({"pictures": "a"}, "nothing to measure: give against"),
        ({"model": "m", "clip": "c"}, "model: needs prompts"),
        ({"pictures": "a", "against": "b", "metrics": "fdi"}, "did you mean 'fid'"),
        ({"pictures": "a", "metrics": "kid"}, "'kid' compares with reference pictures: give against"),
        ({"pictures": "a", "metrics": "clip"}, "'clip' needs clip"),
        ({"pictures": "a", "metrics": "copies"}, "'copies' needs training"),
        ({"pictures": "a", "clip": "c", "guidance": (3,)}, "are for pictures that a model makes"),
        ({"pictures": "a", "against": "b", "features": ()}, "at least one of inception"),
        ({"pictures": "a", "clip": "c", "shard": "3/2"}, "shard '3/2': i/n with 1 <= i <= n"),
        ({"pictures": "a", "clip": "c", "chunk": 0}, "chunk 0: must be greater than or equal to 1"),
        ({"pictures": "a", "agianst": "b"}, "did you mean 'against'"),
        ({"model": "m", "prompts": "p", "clip": "c", "steps": "0"}, "steps at least 1"),
        ({"model": "m", "prompts": "p", "clip": "c", "guidance": "high"}, "guidance"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        spec_of(fields)
    assert "\n" not in str(refused.value)


def test_where_and_how_many_decide_no_number() -> None:
    one = spec_of({"pictures": "a", "against": "b"})
    moved = spec_of({"pictures": "a", "against": "b", "out": "elsewhere", "workers": 7, "shard": "1/3"})
    assert one.settings() == moved.settings()
    later = spec_of({"pictures": "a", "against": "b", "metrics": "pr", "weight": 1.0})
    assert one.work() == later.work(), "features are the same"
    assert one.settings() != later.settings()
    for change in ({"protocol": "clean"}, {"chunk": 7}, {"limit": 3}, {"threads": 2}, {"features": "evaluator"}):
        assert spec_of({"pictures": "a", "against": "b", **change}).work() != one.work(), change


def test_yaml_holds_the_same_settings_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("pictures: a\nagainst: b\nmetrics: [fid, pr]\nchunk: 5\n")
    assert read_spec(file, chunk=9) == spec_of({"pictures": "a", "against": "b", "metrics": ("fid", "pr"), "chunk": 9})
    file.write_text("just words")
    with pytest.raises(RequestError, match="settings such as"):
        read_spec(file)
    with pytest.raises(RequestError, match="cannot be read"):
        read_spec(tmp_path / "nothing.yaml")


def test_every_metric_is_described() -> None:
    assert all(METRICS.values())
