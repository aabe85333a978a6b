"""The arithmetic of waiting: bounded cost, an honest Retry-After, no starvation, small jobs first but not for ever."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.pipeline.request import ImageRef, Request
from mezzotint.serve.queue import LONGEST_RETRY_S, MOST, Defaults, Full, Queue, cost, evaluations

TINY = Defaults(width=64, height=64, steps=20, guidance=7.5, sampler="dpmpp_2m")


def test_places_of_all_are_those_of_each_and_many_tiny_jobs_are_too_many() -> None:
    queue = Queue(capacity=1e9, places=1)
    queue.learn(1, 2)
    for i in range(MOST):
        queue.offer(f"j{i}", 1 + i % 3, f"client {i % 5}", now=float(i))
    queue.next()
    queue.offer("last", 1, "client 0", now=1e6)
    done = dict.fromkeys(queue.running, 0.5)
    assert queue.places_of(done) == {job: queue.place(job, done) for job in queue.waiting}
    positions = [position for position, _ in queue.places_of(done).values()]
    assert positions == list(range(len(queue.waiting)))
    with pytest.raises(Full):
        queue.offer("one more", 1e-9, "client 1", now=1e6)


def test_costs_are_pixels_times_evaluations_times_rows():
    one = cost(Request(steps=10), TINY)
    assert one == pytest.approx(64 * 64 / 1e6 * (10 * 2 + 2))
    assert cost(Request(steps=10, count=3), TINY) == pytest.approx(3 * one)
    assert cost(Request(steps=10, width=128, height=128), TINY) == pytest.approx(4 * one)
    assert cost(Request(steps=10, guidance=1), TINY) == pytest.approx(64 * 64 / 1e6 * 12)
    assert evaluations(Request(steps=10, sampler="heun"), TINY) == 19
    assert evaluations(Request(count=2), TINY) == 40
    assert evaluations(Request(steps=10, image=ImageRef(data=b"x"), strength=0.5), TINY) == 5


@given(st.lists(st.tuples(st.floats(0.1, 50), st.booleans()), max_size=60), st.floats(1, 100))
def test_what_is_held_never_exceeds_the_capacity_but_for_one_job_alone(arrivals: list[tuple[float, bool]], room: float):
    queue = Queue(capacity=room, seconds_per_cost=1.0)
    for number, (size, ends) in enumerate(arrivals):
        before = queue.held
        if before and before + size > room:
            with pytest.raises(Full) as full:
                queue.offer(str(number), size, "c", float(number))
            assert 1 <= full.value.retry_after <= LONGEST_RETRY_S
            assert queue.held == before
        else:
            queue.offer(str(number), size, "c", float(number))
            assert queue.held <= room or before == 0
        queue.next()
        if ends and queue.running:
            queue.leave(next(iter(queue.running)))


def test_retry_after_is_the_time_until_it_fits():
    queue = Queue(capacity=10, seconds_per_cost=2.0)
    queue.offer("a", 8, "c", 0)
    with pytest.raises(Full) as full:
        queue.offer("b", 5, "c", 0)
    assert full.value.retry_after == 6  # 3 too much, 2 seconds each
    with pytest.raises(Full) as full:
        queue.offer("b", 1000, "c", 0)
    assert full.value.retry_after == 16  # it is let in once nothing is here
    queue.leave("a")
    queue.offer("b", 1000, "c", 0)


def test_equal_jobs_come_in_the_order_of_their_arrival():
    queue = Queue(capacity=1e9, places=1, seconds_per_cost=1.0)
    for number in range(20):
        queue.offer(str(number), 1, "c", number * 0.1)
    assert [ticket.job for ticket in queue.order()] == [str(number) for number in range(20)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9), st.booleans()), max_size=60))
def test_jobs_of_one_client_stay_in_order_whatever_begins_or_is_learnt_meanwhile(
    arrivals: list[tuple[str, float, bool]],
):
    queue, begun = Queue(capacity=1e9, places=2), list[str]()

    def step() -> None:
        if queue.running and len(queue.running) == queue.places:
            queue.leave(next(iter(queue.running)))
        if (name := queue.next()) is not None:
            begun.append(name)

    for number, (client, rate, steps) in enumerate(arrivals):
        queue.learn(1, rate)
        queue.offer(f"{client}{number:03}", 1, client, number / 10)
        if steps:
            step()
    for _ in range(3 * len(arrivals)):
        step()
    assert len(begun) == len(arrivals)
    for client in "abc":
        own = [name for name in begun if name[0] == client]
        assert own == sorted(own)


def test_a_small_job_overtakes_a_large_one_but_not_for_longer_than_that_takes():
    queue = Queue(capacity=1e9, places=1, seconds_per_cost=1.0)
    queue.offer("large", 100, "a", 0)
    queue.offer("early", 1, "b", 50)
    queue.offer("late", 1, "c", 100)
    assert [ticket.job for ticket in queue.order()] == ["early", "large", "late"]


@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=40), st.integers(0, 10**6))
def test_nobody_starves(sizes: list[float], seed: int):
    """A job of size c is begun before any that came more than c seconds after it, however small these are."""
    chance, queue = random.Random(seed), Queue(capacity=1e9, places=1, seconds_per_cost=1.0)
    arrived: dict[str, float] = {}
    now = 0.0
    for number, size in enumerate(sizes):
        now += chance.random()
        queue.offer(str(number), size, f"client {number}", now)
        arrived[str(number)] = now
    position = {ticket.job: place for place, ticket in enumerate(queue.order())}
    for a, size in enumerate(sizes):
        for b in range(len(sizes)):
            if arrived[str(b)] > arrived[str(a)] + size:
                assert position[str(a)] < position[str(b)]


def test_a_client_with_many_jobs_does_not_push_others_back():
    queue = Queue(capacity=1e9, places=1, seconds_per_cost=1.0)
    for number in range(30):
        queue.offer(f"many {number}", 1, "many", 0)
    queue.offer("one", 1, "one", 0.5)
    assert [ticket.job for ticket in queue.order()].index("one") == 1


def test_a_small_job_does_not_wait_for_a_free_place():
    queue = Queue(capacity=1e9, places=2, seconds_per_cost=1.0)
    for name in ("a", "b", "c"):
        queue.offer(name, 100, name, 0)
    assert (queue.next(), queue.next(), queue.next()) == ("a", "b", None)
    queue.offer("small", 10, "d", 1)
    assert queue.next() == "small"
    assert queue.next() is None
    queue.leave("a")
    assert queue.next() == "c"


def test_only_jobs_that_fit_begin():
    queue = Queue(capacity=1e9, places=2)
    queue.offer("other model", 1, "c", 0)
    queue.offer("this model", 1, "c", 1)
    assert queue.next(lambda job: job == "this model") is None  # not before its turn
    queue.leave("other model")
    assert queue.next(lambda job: job == "this model") == "this model"


def test_places_and_times_are_told():
    queue = Queue(capacity=1e9, places=1)
    queue.offer("a", 4, "c", 0)
    queue.next()
    queue.offer("b", 2, "c", 1)
    queue.offer("c", 3, "c", 2)
    assert queue.place("c", {}) == (1, None)  # nothing is known of speed
    queue.learn(10, 5)
    assert queue.place("c", {"a": 0.5}) == (1, pytest.approx((2 + 2 + 3) * 0.5))
    assert queue.place("b", {"a": 1.0}) == (0, pytest.approx(1.0))


def test_the_rate_follows_what_jobs_take():
    queue = Queue(capacity=1)
    queue.learn(1, 1)
    for _ in range(60):
        queue.learn(1, 3)
    assert queue.seconds_per_cost == pytest.approx(3, rel=1e-4)
    queue.learn(0, 1)
    queue.learn(1, 0)
    assert queue.seconds_per_cost == pytest.approx(3, rel=1e-4)
