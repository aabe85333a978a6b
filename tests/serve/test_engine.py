"""The engine: every picture is its solo picture, whatever else is being made; a job that ends takes nothing with it."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mezzotint.images import encode, open_image, to_array
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.making import Making
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System, load
from mezzotint.serve.engine import Engine, Job
from mezzotint.serve.wire import Frame
from mezzotint.serve.wish import referred, told


@dataclass
class Room:
    """An engine in this process, and everything that it said."""

    engine: Engine
    heard: list[tuple[dict[str, Any], tuple[bytes, ...]]] = field(  # Any: JSON
        default_factory=list[tuple[dict[str, Any], tuple[bytes, ...]]]  # Any: JSON
    )

    def make(self, job: str, *requests: Request, **more: Any) -> None:  # Any: JSON
        """Give it a job."""
        fields, pictures = list[dict[str, Any]](), dict[str, bytes]()  # Any: JSON
        for request in requests:
            one, given = told(request)
            fields.append(one)
            pictures |= given
        head = {"do": "make", "job": job, "requests": fields, "pictures": list(pictures), **more}
        self.engine.obey(Frame(head, tuple(pictures.values())))

    def run(self, turns: int = 10**6) -> None:
        """Give it turns, until it has nothing to do."""
        while self.engine.jobs and turns > 0:
            self.engine.turn()
            turns -= 1

    def said(self, job: str, what: str) -> list[dict[str, Any]]:  # Any: JSON
        """Messages of a kind about a job."""
        return [head for head, _ in self.heard if head.get("job") == job and head["is"] == what]

    def pictures(self, job: str) -> list[bytes]:
        """The files of a job's pictures."""
        return [parts[0] for head, parts in self.heard if head.get("job") == job and head["is"] == "picture"]


def room(system: System, merge_rows: int = 0) -> Room:
    heard: list[tuple[dict[str, Any], tuple[bytes, ...]]] = []  # Any: JSON

    def say(head: dict[str, Any], *parts: bytes) -> None:  # Any: JSON
        heard.append((head, parts))

    engine = Engine(say, merge_rows=merge_rows)
    engine.system = system
    return Room(engine, heard)


def photo() -> bytes:
    y, x = np.mgrid[0:48, 0:64]
    return encode(Image.fromarray(np.stack([4 * x, 5 * y, x * y % 256], axis=-1).astype(np.uint8)))


def mixed() -> dict[str, Request]:
    """Sixteen requests of every sort: sizes, samplers that draw, guidance off, pictures, masks, several pictures."""
    given = referred(photo())
    mask = referred(encode(Image.fromarray(np.pad(np.full((24, 32), 255, np.uint8), 12))))
    samplers = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_sde", "heun", "ddim", "lcm", "dpmpp_2m_sde")
    jobs = {f"plain {name}": Request(prompt=name, sampler=name, seed=i, steps=3) for i, name in enumerate(samplers)}
    return jobs | {
        "wide": Request(prompt="wide", width=96, height=48, steps=2, seed=5),
        "large": Request(prompt="large", width=128, height=128, steps=2, seed=5),
        "unguided": Request(prompt="unguided", guidance=1, steps=4, seed=6),
        "two": Request(prompt="two", count=2, steps=2, seed=7),
        "long": Request(prompt="long", steps=12, seed=8),
        "image": Request(prompt="image", image=given, strength=0.7, steps=4, seed=9),
        "mask": Request(prompt="mask", image=given, mask=mask, steps=3, seed=10),
        "skip": Request(prompt="skip", negative="bad", clip_skip=2, steps=2, seed=11, mark=False),
    }


def solo(system: System, request: Request) -> list[bytes]:
    """The files that `generate` makes of a request."""
    result = generate(system, request)
    return [result.png(i) for i in range(len(result.images))]


@pytest.fixture(scope="module")
def alone(system: System) -> dict[str, list[bytes]]:
    """The solo pictures of `mixed`."""
    return {name: solo(system, request) for name, request in mixed().items()}


def test_every_picture_equals_its_solo_run_to_the_bit_under_a_random_load(
    system: System, alone: dict[str, list[bytes]]
) -> None:
    """Jobs arrive, are cancelled and end in any order, and the turns between fall as they may."""
    chance = random.Random(0)
    crowd = room(system)
    names = list(mixed())
    chance.shuffle(names)
    for number, name in enumerate(names):
        crowd.make(name, mixed()[name], preview=chance.random() < 0.5, partials=chance.randrange(3))
        if chance.random() < 0.4:
            crowd.make(f"noise {number}", Request(prompt="gone", steps=9, seed=99))
        crowd.run(chance.randrange(12))
        for other in [job for job in crowd.engine.jobs if job.startswith("noise") and chance.random() < 0.5]:
            crowd.engine.obey(Frame({"do": "cancel", "job": other}))
    crowd.run()
    for name, pictures in alone.items():
        assert crowd.pictures(name) == pictures, name
        assert [head["is"] for head, _ in crowd.heard if head.get("job") == name][-1] == "done"


def test_the_test_sees_a_picture_that_depends_on_its_neighbours(
    system: System, alone: dict[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One generator for all, which each picture seeds when it begins, is right until another begins in between."""
    begun: list[torch.Generator] = []

    def drawn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        if generator not in begun:
            begun.append(generator)
        return torch.randn(shape, generator=begun[-1])

    monkeypatch.setattr("mezzotint.pipeline.picture._randn", drawn)
    assert {name: solo(system, request) for name, request in mixed().items()} == alone
    crowd = room(system)
    for name, request in mixed().items():
        crowd.make(name, request)
    crowd.run()
    assert any(crowd.pictures(name) != pictures for name, pictures in alone.items())


def test_turns_are_shared_so_that_a_small_job_does_not_wait_for_a_large_one(system: System) -> None:
    crowd = room(system)
    crowd.make("large", Request(prompt="a", width=128, height=128, steps=30, seed=1))
    crowd.run(5)
    crowd.make("small", Request(prompt="b", steps=2, seed=1))
    crowd.run()
    order = [head["job"] for head, _ in crowd.heard if head["is"] in {"done", "picture"}]
    assert order == ["small", "small", "large", "large"]
    progress = [head["job"] for head, _ in crowd.heard if head["is"] == "progress"]
    assert progress[5] == "small" or progress[6] == "small"


def test_cancel_takes_effect_before_the_next_step_and_for_that_job_alone(system: System) -> None:
    crowd = room(system)
    crowd.make("stays", Request(prompt="a", steps=3, seed=1))
    crowd.make("goes", Request(prompt="b", steps=50, seed=1))
    crowd.run(6)
    steps = len(crowd.said("goes", "progress"))
    crowd.engine.obey(Frame({"do": "cancel", "job": "goes"}))
    crowd.run()
    assert len(crowd.said("goes", "progress")) == steps
    assert len(crowd.said("goes", "cancelled")) == 1
    assert not crowd.pictures("goes")
    assert crowd.pictures("stays") == solo(system, Request(prompt="a", steps=3, seed=1))
    crowd.engine.obey(Frame({"do": "cancel", "job": "goes"}))  # once more: nobody is there
    assert len(crowd.said("goes", "cancelled")) == 1


TOLD = Request(prompt="a red fox", steps=6, seed=7)


def told_beside_others(system: System) -> Room:
    """Somebody has a picture explained; when its telling begins, somebody else wants one of many steps."""
    crowd = room(system)
    crowd.make("told", TOLD, explain=True)
    while not crowd.said("told", "telling"):
        crowd.engine.turn()
    crowd.make("other", Request(prompt="b", steps=100, seed=1))
    crowd.run()
    return crowd


def steps_before_the_story(crowd: Room) -> int:
    """How many steps the other one got while the story was told."""
    kinds = [head["is"] for head, _ in crowd.heard]
    return kinds[kinds.index("telling") : kinds.index("story")].count("progress")


def test_an_explained_picture_is_its_solo_picture_and_its_story_leaves_turns_to_others(system: System) -> None:
    crowd = told_beside_others(system)
    assert crowd.pictures("told") == solo(system, TOLD)
    assert steps_before_the_story(crowd) > 3
    (story,) = (parts[0] for head, parts in crowd.heard if head["is"] == "story")
    blocks = [block for section in json.loads(story)["sections"] for block in section["blocks"]]
    frames = next(block["frames"] for block in blocks if "frames" in block)
    assert [frame["step"] for frame in frames] == list(range(6))


def test_a_story_that_is_told_at_one_go_would_be_caught(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pieces = Engine._tell  # pyright: ignore[reportPrivateUsage]  # what is replaced

    def at_one_go(engine: Engine, job: Job) -> None:
        while job.telling is not None:
            in_pieces(engine, job)

    monkeypatch.setattr(Engine, "_tell", at_one_go)
    assert steps_before_the_story(told_beside_others(system)) <= 1


def test_a_story_is_given_up_between_its_pieces(system: System) -> None:
    crowd = room(system)
    crowd.make("goes", TOLD, explain=True)
    while not crowd.said("goes", "telling"):
        crowd.engine.turn()
    crowd.run(3)
    (job,) = crowd.engine.jobs.values()
    crowd.engine.obey(Frame({"do": "cancel", "job": "goes"}))
    assert not crowd.engine.jobs
    assert crowd.said("goes", "cancelled")
    assert not crowd.said("goes", "story")
    assert job.telling is not None
    with pytest.raises(StopIteration):
        next(job.telling)


def test_a_story_that_is_too_large_fails_in_words(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.serve.engine.STORY_BYTES", 1000)
    crowd = room(system)
    crowd.make("large", TOLD, explain=True)
    crowd.run()
    assert "more than 1000 bytes" in crowd.said("large", "failed")[0]["detail"]
    assert crowd.pictures("large")


def test_rows_that_somebody_looks_at_are_not_merged(shelf_folder: Path) -> None:
    """Merged ones would be run without the one who looks, and the maps would lack them."""
    plain = load(shelf_folder / "model", kernels="torch")
    crowd = room(plain, merge_rows=4)
    crowd.make("told", TOLD, explain=True)
    crowd.make("other", TOLD)
    watching = crowd.engine.jobs["told"].watching
    crowd.run()
    assert watching is not None
    assert watching.evaluations == TOLD.steps


def test_skip_goes_on_with_the_next_picture(system: System) -> None:
    crowd = room(system)
    crowd.make("three", Request(prompt="a", steps=5, seed=1, count=3))
    crowd.run(3)
    crowd.engine.obey(Frame({"do": "skip", "job": "three"}))
    crowd.run()
    assert crowd.pictures("three") == solo(system, Request(prompt="a", steps=5, seed=1, count=3))[1:]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("secret /home/path 0x7f"), "failed", "the picture could not be made; the server's log says why"),
        (MemoryError("secret"), "out_of_memory", "not enough memory for this size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", "not enough memory"),
    ],
)
def test_a_job_that_fails_says_no_more_than_that_and_takes_nothing_with_it(
    system: System, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, words: str
) -> None:
    size = system.vae.factor * 8
    poisoned = Request(prompt="p", width=size, height=size, steps=2, seed=1)
    healthy = Request(prompt="h", width=2 * size, height=size, steps=2, seed=1)
    expected = solo(system, healthy)
    real = System.decoding

    def decoding(self: System, latent: torch.Tensor) -> Any:  # Any: bands
        if latent.shape[-1] == 8:  # only the poisoned size
            raise error
        return (yield from real(self, latent))

    monkeypatch.setattr(System, "decoding", decoding)
    crowd = room(system)
    for name, request in (("a", healthy), ("poisoned", poisoned), ("b", healthy)):
        crowd.make(name, request)
    crowd.run()
    (failed,) = crowd.said("poisoned", "failed")
    assert failed["code"] == code
    assert words in failed["detail"]
    assert "secret" not in str(failed)
    assert crowd.pictures("a") == crowd.pictures("b") == expected


def test_a_picture_of_nothing_but_nan_is_a_failure(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def hollow(self: Making, i: int) -> Any:  # Any: rows
        latent = yield from real(self, i)
        return latent * float("nan")

    real = Making.rows
    monkeypatch.setattr(Making, "rows", hollow)
    crowd = room(system)
    crowd.make("nan", Request(prompt="x", steps=1, seed=1))
    crowd.run()
    assert "NaN" in crowd.said("nan", "failed")[0]["detail"]
    assert not crowd.pictures("nan")


def test_all_requests_of_a_job_are_checked_before_the_first_is_begun(system: System) -> None:
    crowd = room(system)
    crowd.make("job", Request(prompt="x", steps=1), Request(prompt="x", reference=referred(photo())))
    assert crowd.said("job", "failed")[0]["code"] == "wrong_request"
    assert "is no unCLIP model" in crowd.said("job", "failed")[0]["detail"]
    assert not crowd.said("job", "started")
    assert not crowd.engine.jobs


def test_a_prompt_of_special_tokens_does_no_harm(system: System) -> None:
    crowd = room(system)
    for number, prompt in enumerate(("<|endoftext|>", "<|startoftext|>" * 90, "", "\x00\n\t", "'" * 3000, "🦊" * 200)):
        crowd.make(str(number), Request(prompt=prompt, steps=1, seed=1))
    crowd.run()
    assert all(len(crowd.pictures(str(number))) == 1 for number in range(6))


def test_partial_pictures_are_decoded_at_even_distances(system: System) -> None:
    crowd = room(system)
    crowd.make("job", Request(prompt="x", steps=8, seed=1), partials=3)
    crowd.run()
    told_ = crowd.said("job", "partial")
    assert [(head["index"], head["step"]) for head in told_] == [(0, 2), (1, 4), (2, 6)]
    sizes = {open_image(parts[0]).size for head, parts in crowd.heard if head["is"] == "partial"}
    assert sizes == {(64, 64)}


def test_merged_rows_equal_the_solo_run_within_the_stated_tolerance(shelf_folder: Path) -> None:
    """On plain kernels; rows of a network that was made ready for a processor run alone."""
    system = load(shelf_folder / "model", dtype="float32", kernels="torch")
    crowd = room(system, merge_rows=8)
    calls: list[int] = []
    names = [name for name in mixed() if name.startswith("plain") or name in {"two", "long", "unguided", "wide"}]
    for name in names:
        crowd.make(name, mixed()[name])
    hook = system.unet.register_forward_pre_hook(lambda module, given: calls.append(given[0].shape[0]))
    try:
        crowd.run()
    finally:
        hook.remove()
    assert set(calls) == {8}, "every merged call has the same number of rows"
    assert len(calls) < sum(len(crowd.said(name, "progress")) for name in names) * 0.6
    for name in names:
        for ours, theirs in zip(crowd.pictures(name), solo(system, mixed()[name]), strict=True):
            difference = np.abs(to_array(open_image(ours)) - to_array(open_image(theirs))) * 127.5
            assert difference.mean() < 0.1, name  # of 255: float32 sums in another order


def test_of_merged_jobs_only_the_one_that_fails_fails(shelf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(shelf_folder / "model", kernels="torch", dtype="float32")
    crowd = room(plain, merge_rows=8)
    previewed = type(plain).preview
    asked = 0

    def failing(self: System, x0: Tensor) -> Any:  # Any: a picture
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ValueError("of one job")
        return previewed(self, x0)

    monkeypatch.setattr(type(plain), "preview", failing)
    for name in ("a", "b", "c"):
        crowd.make(name, Request(prompt=name, steps=4, seed=1), preview=True)
    crowd.run()
    ends = sorted(head["is"] for head, _ in crowd.heard if head["is"] in {"done", "failed"})
    assert ends == ["done", "done", "failed"]


def test_a_model_that_breaks_what_is_told_of_it_is_unloadable(
    system: System, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: System) -> str:
        raise KeyError("a scheduler of another kind")

    monkeypatch.setattr("mezzotint.serve.engine._sampler", broken)
    heard = room(system)
    heard.engine.obey(Frame({"do": "load", "model": "m", "path": str(shelf_folder / "model"), "name": "x"}))
    assert [head["is"] for head, _ in heard.heard] == ["loading", "unloadable"]
    assert heard.engine.system is None


def test_a_model_that_cannot_be_loaded_is_told_and_the_engine_lives(system: System, tmp_path: Path) -> None:
    crowd = room(system)
    crowd.engine.obey(Frame({"do": "load", "model": "m", "path": str(tmp_path / "none"), "name": "none"}))
    assert crowd.heard[-1][0]["is"] == "unloadable"
    crowd.make("job", Request(prompt="x", steps=1))
    assert "no model is loaded" in crowd.said("job", "failed")[0]["detail"]
