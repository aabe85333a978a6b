"""Turns: equal shares of time, whatever the jobs are like."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mezzotint.serve.batcher import Batcher

Costs = list[float]


def run(batcher: Batcher, costs: dict[str, float], turns: int) -> dict[str, float]:
    """Seconds that each job had after so many turns."""
    had = dict.fromkeys(costs, 0.0)
    for _ in range(turns):
        job = batcher.turn()
        assert job is not None
        had[job] += costs[job]
        batcher.charge([job], costs[job])
    return had


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=8), st.integers(1, 300))
def test_no_two_jobs_are_ever_further_apart_than_one_step(steps: Costs, turns: int):
    batcher, costs = Batcher(), {str(i): cost for i, cost in enumerate(steps)}
    for job in costs:
        batcher.add(job)
    had = run(batcher, costs, turns)
    assert max(had.values()) - min(had.values()) <= max(steps) + 1e-9


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.floats(0.01, 1), st.integers(1, 20))
def test_a_small_job_ends_after_its_own_time_times_the_number_of_jobs(large: Costs, step: float, steps: int):
    """However long the others have been running."""
    batcher, costs = Batcher(), {str(i): cost for i, cost in enumerate(large)}
    for job in costs:
        batcher.add(job)
    run(batcher, costs, 100)
    batcher.add("small")
    costs["small"] = step
    spent, done = 0.0, 0
    while done < steps:
        job = batcher.turn()
        assert job is not None
        spent += costs[job]
        batcher.charge([job], costs[job])
        done += job == "small"
    # plus what the others may be ahead of each other, and one step of each
    assert spent <= (len(large) + 1) * step * steps + 2 * sum(large) + step


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_a_job_that_came_back_has_no_past(order: list[str]):
    batcher = Batcher()
    batcher.add("x")
    for job in order:
        batcher.add(job)
        batcher.charge([job], 5.0)
        batcher.remove(job)
    assert batcher.turn() == "x"
    assert len(batcher) == 1
    batcher.add("a")
    batcher.charge(["x"], 1.0)
    assert batcher.turn() == "a"


def test_nobody_is_next_when_nobody_is_there():
    batcher = Batcher()
    assert batcher.turn() is None
    batcher.charge(["gone"], 1.0)
    batcher.remove("gone")
    assert len(batcher) == 0


def test_a_group_is_of_one_kind_fits_and_begins_with_the_job_that_is_next():
    batcher, kinds = Batcher(), {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1}
    rows = {"a": 2, "b": 2, "c": 2, "d": 4, "e": 2}
    for job in kinds:
        batcher.add(job)
    assert batcher.group(kinds.__getitem__, rows.__getitem__, 6) == ["a", "c", "e"]
    batcher.charge(["a", "c", "e"], 3.0)
    assert batcher.turn() == "b"
    assert batcher.group(kinds.__getitem__, rows.__getitem__, 6) == ["b"]


def test_first_come_first_served_is_seen_to_be_unfair():
    """The mutant that these laws are there to catch."""

    class Fifo(Batcher):
        def turn(self) -> str | None:
            return next(iter(self._had), None)

    chance = random.Random(0)
    batcher, costs = Fifo(), {str(i): chance.random() for i in range(3)}
    for job in costs:
        batcher.add(job)
    had = run(batcher, costs, 50)
    assert max(had.values()) - min(had.values()) > 1
