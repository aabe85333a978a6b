"""The data card: equal rules on equal pictures give equal cards, and nothing can change without its saying so."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.test_filters import ROWS, RULE, rows, stored, textured
from mezzotint.data.card import Gated, curate, read_card
from mezzotint.data.filters import Bounds, Duplicates, Filters
from mezzotint.data.pictures import PictureSet
from mezzotint.errors import MezzotintError


def test_counts_at_every_gate() -> None:
    kept, card = curate(rows(), RULE)
    left = list(range(ROWS))
    counted: list[Gated] = []
    keeps: dict[str, Callable[[int], bool]] = {
        "aesthetic": lambda i: i % 10 >= 5,
        "pwatermark": lambda i: i % 4 < 3,
        "columns.luma": lambda i: i % 2 > 0 or i % 8 >= 2,
        "captions": lambda i: i % 7 > 0,
        "size": lambda i: i % 3 > 0,
    }
    for name in keeps:
        judged, missing = len(left), sum(i % 2 for i in left) if "luma" in name else 0
        left = [i for i in left if keeps[name](i)]
        counted.append(Gated(name, judged, missing, judged - len(left), len(left)))
    assert list(card.gates) == counted
    assert [p.key for p in kept] == [f"row-{i}" for i in left]
    assert (card.pictures, card.kept, card.captions_dropped) == (ROWS, len(left), 143)


def test_card_is_the_same_in_any_order_of_set_and_rule() -> None:
    first = curate(rows(), RULE).card
    shuffled = random.Random(0).sample(rows(), ROWS)
    turned = Filters(columns={"z": Bounds(keeps_missing=True), **RULE.columns}, readable=False)
    again = Filters(columns={**RULE.columns, "z": Bounds(keeps_missing=True)}, readable=False)
    assert curate(shuffled, RULE).card == first
    assert curate(rows(), turned).card.hash == curate(rows(), again).card.hash != first.hash


def test_card_is_read_back_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    card = curate(rows(), RULE).card
    card.write(tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == card
    assert read_card(tmp_path / "card.json").hash == json.loads((tmp_path / "card.json").read_text())["hash"]
    data = json.loads(card.to_json())
    for name, value, message in (
        ("kept", 999, "the card was changed"),
        ("rule", data["rule"] | {"aesthetic": {"at_least": 4}}, "the card was changed"),
        ("schema", 2, "card of schema 2; this version reads 1"),
        ("extra", 1, "no data card"),
    ):
        (tmp_path / "card.json").write_text(json.dumps(data | {name: value}))
        with pytest.raises(MezzotintError, match=message):
            read_card(tmp_path / "card.json")


def test_card_knows_its_pictures() -> None:
    pictures = [stored(f"p{i}", textured(i)) for i in range(4)]
    kept, card = PictureSet(tuple(pictures)).curated(Filters(duplicates=Duplicates()))
    card.verify(kept.pictures[::-1])
    repainted = [*kept.pictures[:3], stored("p3", textured(9))]
    with pytest.raises(MezzotintError, match="the 4 pictures are not those of card"):
        card.verify(repainted)
    with pytest.raises(MezzotintError, match="the card speaks of 4 pictures, there are 3"):
        card.verify(kept.pictures[:3])


def test_repeats_are_no_duplicates() -> None:
    once, other = stored("once", textured(0)), stored("copy", textured(0))
    kept, card = curate([once, other, once, once], Filters(duplicates=Duplicates(distance=2)))
    assert Counter(p.key for p in kept) in ({"copy": 1}, {"once": 3})
    assert [gate.judged for gate in card.gates] == [2, 2, 1]


def test_nothing_left_names_the_gate() -> None:
    with pytest.raises(
        MezzotintError, match="none of 1000 pictures passes the filters; aesthetic refused 1000 of 1000"
    ):
        curate(rows(), Filters(aesthetic=Bounds(at_least=11), readable=False))
