"""Events of a job: a reader who comes back misses nothing that matters."""

import asyncio
import json

from hypothesis import given
from hypothesis import strategies as st

from mezzotint.serve.events import FLEETING, LAST, Event, EventLog

KINDS = st.lists(st.sampled_from(["queued", "progress", "preview", "image", "warning"]), max_size=25)


def read(log: EventLog, after: int = 0, patience: float = 5.0) -> list[Event]:
    async def all_of_it() -> list[Event]:
        return [event async for event in log.follow(after, patience=patience) if event is not None]

    return asyncio.run(all_of_it())


@given(KINDS, st.sampled_from(sorted(LAST)), st.integers(0, 30))
def test_a_reader_that_comes_back_gets_everything_that_lasts_exactly_once(kinds: list[str], last: str, cut: int):
    log, whole = EventLog(), list[Event]()
    for number, kind in enumerate(kinds):
        log.add(kind, {"n": number})
        whole.append(Event(number + 1, kind, {"n": number}))
    seen = [event for event in whole if event.number <= cut]  # by a reader who then went away
    log.add(last, {})
    rest = read(log, after=seen[-1].number if seen else 0)
    lasting = [event for event in (*seen, *rest) if event.kind not in FLEETING]
    assert lasting == [event for event in whole if event.kind not in FLEETING] + [Event(len(kinds) + 1, last, {})]
    numbers = [event.number for event in rest]
    assert numbers == sorted(set(numbers))


def test_of_fleeting_events_only_the_latest_is_kept():
    log = EventLog()
    for step in range(1000):
        log.add("progress", {"step": step})
        log.add("preview", {"step": step})
    assert [(event.kind, event.data["step"]) for event in log.since(0)] == [("progress", 999), ("preview", 999)]
    log.add("started", {})
    log.add("done", {})
    assert [event.kind for event in log.since(0)] == ["started", "done"]
    log.add("image", {})  # nothing happens after the end
    assert log.latest("image") is None
    assert log.is_closed


def test_a_waiting_reader_is_woken_and_reminded():
    """Who is reminded often, and who is not reminded in the time that this takes."""

    async def play() -> tuple[list[str], list[str]]:
        log, often, seldom = EventLog(), list[str](), list[str]()

        async def reader(seen: list[str], patience: float) -> None:
            async for event in log.follow(patience=patience):
                kind = event.kind if event else "still here"
                seen.append(kind)

        async with asyncio.timeout(60), asyncio.TaskGroup() as readers:
            readers.create_task(reader(often, 0.02))
            readers.create_task(reader(seldom, 10))
            while len(often) < 2:
                await asyncio.sleep(0.01)
            log.add("image", {})
            while "image" not in often or "image" not in seldom:
                await asyncio.sleep(0.01)
            log.add("done", {})
        return often, seldom

    often, seldom = asyncio.run(play())
    assert often[:2] == ["still here", "still here"]
    assert [kind for kind in often if kind != "still here"] == seldom == ["image", "done"]


@given(st.text(max_size=50))
def test_no_text_can_end_an_event_early(text: str):
    sent = Event(7, "warning", {"detail": text}).sent()
    lines = sent.decode("ascii").split("\n")
    assert [line.partition(":")[0] for line in lines] == ["id", "event", "data", "", ""]
    assert json.loads(lines[2].removeprefix("data: ")) == {"detail": text}
