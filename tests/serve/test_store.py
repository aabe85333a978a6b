"""The gallery's folder: files are the truth, the index follows, and a crash at any moment leaves nothing half."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mezzotint.errors import RequestError
from mezzotint.images import encode, open_image
from mezzotint.serve.ids import new_id
from mezzotint.serve.store import INDEX, JOBS_S, MAX_STORIES, PASSING_S, UPLOADS_S, Store
from serve.conftest import recorded


def png(prompt: str = "a fox", negative: str | None = None, seed: int = 1, **request: object) -> bytes:
    fields = {"prompt": prompt, "negative": negative, "seed": seed, "steps": 4, "sampler": "euler", **request}
    record: dict[str, Any] = {
        "schema": 1,
        "resolved": {"request": fields},
        "model": {"unet": {"name": "icons"}},
        "parents": [],
    }  # Any: JSON
    return encode(Image.new("RGB", (64, 48), (seed % 256, 0, 0)), f"{prompt}\nSteps: 4", record)


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


@contextmanager
def opened(folder: Path) -> Generator[Store]:
    """The store of a folder, which only one may have at a time."""
    made = Store(folder)
    try:
        yield made
    finally:
        made.close()


def add(store: Store, data: bytes | None = None, *, is_kept: bool = True) -> str:
    name = new_id("p")
    store.add_picture(name, data or png(), job=None, is_kept=is_kept)
    return name


def test_a_picture_is_found_by_words_of_its_prompts(store: Store):
    fox = add(store, png("a red fox in snow", "blurry"))
    both = add(store, png("a fox and an owl"))
    add(store, png("100% wool_sock \\ done"))
    assert [row["id"] for row in store.search("fox").pictures] == [both, fox]
    assert [row["id"] for row in store.search("snow FOX").pictures] == [fox]
    assert [row["id"] for row in store.search("blurry").pictures] == [fox]
    assert store.search("fox owl snow").total == 0
    assert store.search("%").total == store.search("wool_").total == store.search("\\").total == 1
    assert store.search("_%_%").total == 0
    assert store.search("' OR 1=1 --").total == 0
    assert store.search(model="icons").total == 3
    assert store.search(model="other").total == store.search(sampler="heun").total == 0


def test_pages_hold_every_picture_once_newest_first(store: Store):
    names = [add(store, png(seed=seed)) for seed in range(7)]
    seen: list[str] = []
    before = None
    while True:
        found = store.search(limit=3, before=before)
        seen += [row["id"] for row in found.pictures]
        assert found.total == 7
        before = found.next
        if before is None:
            break
    assert seen == names[::-1]


def test_deleting_takes_file_thumb_and_row_and_nothing_else(store: Store):
    one, other = add(store), add(store)
    assert store.thumb_bytes(one) is not None
    assert store.delete_picture(one)
    assert not store.delete_picture(one)
    assert store.picture_bytes(one) is None
    assert store.picture_bytes(other) == png()
    assert not list(store.folder.rglob(f"{one}*"))


@pytest.mark.parametrize("name", ["", "p_", "../x", "p_" + "0" * 26, "u_" + "0" * 26, "j_" + "0" * 26, "index.sqlite3"])
def test_other_names_are_nothing(store: Store, name: str):
    assert store.picture(name) is None
    assert store.picture_bytes(name) is None
    assert store.thumb_bytes(name) is None
    assert store.source_bytes(name) is None
    assert not store.delete_picture(name)
    assert (store.folder / INDEX).is_file()


def test_a_link_in_place_of_a_picture_is_not_followed(store: Store, tmp_path: Path):
    one, other = add(store), add(store)
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(png("secret"))
    places = [path for name in (one, other) for path in (store.folder / "pictures").rglob(f"{name}.png")]
    for path in places:
        path.unlink()
        path.symlink_to(secret)
    assert store.picture_bytes(one) is store.picture_bytes(other) is None
    assert store.delete_picture(one)
    assert [path.is_symlink() for path in places] == [False, True]
    places[0].symlink_to(secret)  # now without a row; the other has one
    store.close()
    with opened(tmp_path) as again:
        assert again.search("secret").total == 0
    assert secret.read_bytes() == png("secret")
    secret.unlink()


def test_the_index_is_made_again_from_the_files(store: Store):
    kept = [add(store, png(f"picture {seed}", seed=seed)) for seed in range(3)]
    passing = add(store, is_kept=False)
    before = store.search().pictures
    assert store.reindex() == 4
    assert store.search().pictures == before
    assert [row["id"] for row in before] == kept[::-1]
    row = store.picture(passing)
    assert row is not None
    assert not row["kept"]


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 100, None])
def test_a_damaged_index_is_put_aside_and_made_again(store: Store, tmp_path: Path, damage: bytes | None):
    name = add(store)
    store.close()
    path = tmp_path / INDEX
    for beside in (tmp_path / f"{INDEX}-wal", tmp_path / f"{INDEX}-shm"):
        beside.unlink(missing_ok=True)
    if damage is None:
        data = bytearray(path.read_bytes())
        data[100:8000] = os.urandom(len(data[100:8000]))
        damage = bytes(data)
    path.write_bytes(damage)
    with opened(tmp_path) as again:
        assert [row["id"] for row in again.search().pictures] == [name]


def test_opening_sweeps_what_a_crash_left(store: Store, tmp_path: Path):
    here, lost, fileless = add(store), new_id("p"), add(store)
    month = next((tmp_path / "pictures").iterdir())
    (month / f"{lost}.png").write_bytes(png("only a file"))
    (month / f"{new_id('p')}.png").write_bytes(b"\x89PNG\r\n half of something")
    (month / f".{here}.png.0a1b2c3d.tmp").write_bytes(b"draft")
    (month / f"{fileless}.png").unlink()
    store.add_job(new_id("j"), [{"prompt": "x"}], key=None, body="b")
    (tmp_path / "uploads" / f"{new_id('u')}.png").write_bytes(png("no row"))
    store.close()
    with opened(tmp_path) as again:
        assert {row["id"] for row in again.search().pictures} == {here, lost}
        assert not list(tmp_path.rglob("*.tmp"))
        assert not list((tmp_path / "uploads").iterdir())
        (job,) = again.recent_jobs()
        assert job["state"] == "failed"
        assert "interrupted" in job["error"]


@pytest.mark.skipif(os.name != "posix", reason="limits on a process need Linux")
def test_a_folder_that_another_has_is_left_alone(store: Store, tmp_path: Path):
    """Opening sweeps, so a second server would take drafts and jobs from the first."""
    draft = tmp_path / "pictures" / ".p_x.png.0a1b2c3d.tmp"
    draft.write_bytes(b"of the first")
    with pytest.raises(RequestError, match="in use by another server"):
        Store(tmp_path)
    assert draft.exists()
    store.close()
    with opened(tmp_path):
        assert not draft.exists()


def test_what_nobody_keeps_goes_in_time(store: Store):
    kept, passing = add(store), add(store, is_kept=False)
    given = store.add_upload(png())["id"]
    store.expire(time.time() + PASSING_S + 5)
    assert store.picture(passing) is None
    assert store.picture(kept) is not None
    assert store.source_bytes(given) is not None
    store.expire(time.time() + UPLOADS_S + 5)
    assert store.source_bytes(given) is None
    assert not list((store.folder / "uploads").iterdir())
    assert store.picture_bytes(kept) is not None


def test_stories_are_few_and_go_in_time(store: Store):
    names = [new_id("j") for _ in range(MAX_STORIES + 2)]
    for name in names:
        store.add_story(name, b"{}")
    assert [store.story_size(name) for name in names] == [None] * 2 + [2] * MAX_STORIES
    assert store.story_bytes("../index.sqlite3") is None
    store.expire(time.time() + JOBS_S + 1)
    assert store.story_bytes(names[-1]) is None


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="file"):
        Store(tmp_path / "file")


WRITER = """
    import sys, time
    sys.path[:0] = {path!r}
    from pathlib import Path
    from serve.test_store import png
    from mezzotint.serve.ids import new_id
    from mezzotint.serve.store import Store
    store = Store(Path({folder!r}))
    print("open", flush=True)
    number = 0
    while True:
        number += 1
        name = new_id("p")
        store.add_picture(name, png(f"number {{number}}", seed=number), job=None, is_kept=True)
        print(name, flush=True)
        if number % 3 == 0:
            print("~" + name, flush=True)
            store.delete_picture(name)
            print("-" + name, flush=True)
"""


def lives(tmp_path: Path, kills: int) -> int:
    """Kill a process that writes pictures, so many times; how many pictures were promised over all lives."""
    promised, deleted, doomed = set[str](), set[str](), set[str]()
    code = textwrap.dedent(WRITER).format(path=[str(Path(__file__).parent.parent)], folder=str(tmp_path))
    for life in range(kills):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(0.5 + 0.023 * (life % 17))
            process.send_signal(signal.SIGKILL)
            for line in process.stdout.read().splitlines():
                {"-": deleted, "~": doomed}.get(line[0], promised).add(line.strip("-~"))
        store = Store(tmp_path)
        rows = {row["id"] for page in (store.search(limit=200),) for row in page.pictures}
        files = {path.stem for path in (tmp_path / "pictures").rglob("*.png")}
        assert store.search().total == len(files)
        assert rows <= files
        assert promised - doomed <= files, "a picture that was told of is gone"
        assert not deleted & files, "a picture that was deleted is back"
        for path in (tmp_path / "pictures").rglob("*.png"):
            open_image(path)  # whole
        store.close()
        with sqlite3.connect(tmp_path / INDEX) as database:
            assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        database.close()
    return len(promised)


@pytest.mark.skipif(os.name != "posix", reason="limits on a process need Linux")
def test_killed_while_it_writes_nothing_is_half(tmp_path: Path):
    assert lives(tmp_path, 4) > 4  # pictures


@pytest.mark.slow
def test_killed_fifty_times_while_it_writes_nothing_is_half(tmp_path: Path):
    pictures = lives(tmp_path, 50)
    assert pictures > 50
    recorded("G20 store kills", {"kills": 50, "pictures": pictures, "half": 0, "lost": 0})
