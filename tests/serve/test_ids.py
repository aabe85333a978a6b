"""Names of things: never the same twice, sorted by time, and nothing else is one."""

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mezzotint.serve.ids import is_id, moment_of, named_id, new_id


def test_ids_sort_by_time_and_know_theirs():
    before = time.time()
    names = [new_id("p") for _ in range(2000)]
    assert all(a < b for a, b in pairwise(names))
    assert all(is_id(name, "p") and not is_id(name, "j") for name in names)
    assert before - 0.01 <= moment_of(names[0]) <= time.time() + 2.1  # a millisecond each, if they come faster


def test_a_name_gives_the_same_id_always():
    assert named_id("m", "/models/a") == named_id("m", "/models/a") != named_id("m", "/models/b")
    assert is_id(named_id("m", "x\udcff"), "m")


@given(st.text(max_size=40) | st.integers() | st.none())
def test_nothing_else_is_an_id(text: object):
    assert not is_id(text)


def test_near_misses_are_no_ids():
    name = new_id("p")
    for wrong in (
        name.upper(),
        name + "\n",
        " " + name,
        name[:-1],
        name + "0",
        "x" + name[1:],
        f"../{name}",
        name + "/",
    ):
        assert not is_id(wrong), wrong
