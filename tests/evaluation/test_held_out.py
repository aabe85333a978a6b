"""Recombination: which pairs are asked for, in which words, of which model; and who says it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cli.conftest import pairs_of, tiny_checkpoint
from mezzotint.checkpoints.save import save_folder
from mezzotint.errors import ConfigError
from mezzotint.evaluation.held_out import HEADS, recombination, rows_of, split_of
from mezzotint.evaluation.model_card import measured
from mezzotint.evaluation.tower import place_of
from mezzotint.pipeline.system import load


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    save_folder(tiny_checkpoint(), folder / "model")
    pairs_of(folder / "pairs")
    return folder


def test_only_styles_and_concepts_of_the_model_are_asked_for(place: Path) -> None:
    """The model's record names two of three styles, so the pair that is held back in the third is not its business."""
    split = split_of(place / "model", place / "pairs")
    assert {p.key for p in split.held.pictures} == {"3d--heart", "flat--apple"}
    assert {p.key for p in split.train.pictures} == {"flat--heart", "flat--star", "3d--star", "3d--apple"}


def test_every_pair_is_drawn_from_its_own_words_and_seed(place: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = recombination(
        load(place / "model", dtype="float32"), place / "pairs", place_of("evaluator"), steps=2, seed=5, keep=tmp_path,
        report=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (found.pairs, found.concepts, found.styles) == (2, 3, 2)
    assert len(list((tmp_path / "held-out").glob("*.png"))) == len(list((tmp_path / "seen").glob("*.png"))) == 2
    assert found.held_out.made.concept.of == found.held_out.ceiling.concept.of == 2
    rows = rows_of(asdict(found))
    assert [row[:2] for row in rows[:4]] == [("held-out", m) for m in ("concept", "concept in 5", "style", "both")]
    assert {len(row) for row in rows} == {len(HEADS)}
    again = recombination(
        load(place / "model", dtype="float32"), place / "pairs", place_of("evaluator"), steps=2, seed=5
    )
    assert again == found


def test_what_is_missing_is_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no pictures back \(heldout\.parquet is missing\)"):
        split_of(place / "model", tmp_path)
    (tmp_path / "mezzotint.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not say which pictures it was trained on"):
        split_of(tmp_path, place / "pairs")


def test_a_model_card_shows_what_was_measured(place: Path, tmp_path: Path) -> None:
    found = recombination(load(place / "model"), place / "pairs", place_of("evaluator"), steps=1, limit=1)
    (tmp_path / "accuracy.json").write_text(json.dumps(asdict(found)))
    told = measured([tmp_path / "accuracy.json"])
    assert "1 pairs that training held back" in told
    assert f"| held-out | concept | {found.held_out.made.concept.value:.0%} (" in told
    assert measured([]) == ""
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json: no report"):
        measured([tmp_path / "other.json"])
