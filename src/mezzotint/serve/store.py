"""Pictures in a folder, and an index of them: what the gallery shows, uploads, stories, jobs that have not ended.

    FOLDER/pictures/2026-11/p_….png     the gallery; each file carries everything that the index says about it
    FOLDER/passing/p_….png              pictures that nobody asked to keep, for an hour
    FOLDER/uploads/u_….png              given pictures, decoded and encoded again, for a day
    FOLDER/thumbs/p_….webp              made again where they are missing
    FOLDER/stories/j_….json             how pictures came about, each for an hour, the latest few
    FOLDER/index.sqlite3                can be deleted: `reindex` makes it again from the files
    FOLDER/in-use.lock                  held by the one process that has the folder

A file appears whole or not at all, and before its row does. Opening sweeps what a crash left: drafts, rows without
files, files without rows. File names are made of ids alone, and links are not followed.
"""

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

from mezzotint.errors import MezzotintError, RequestError
from mezzotint.images import open_image, read_metadata
from mezzotint.serve.ids import is_id, moment_of, new_id
from mezzotint.serve.thumbs import thumbnail
from mezzotint.storage import atomic, sweep

INDEX, LOCK = "index.sqlite3", "in-use.lock"
PASSING_S, UPLOADS_S, JOBS_S = 3600.0, 86400.0, 3600.0
MAX_FOUND = 200
MAX_STORIES = 32
UNFINISHED = ("queued", "running")

_TABLES = """
CREATE TABLE IF NOT EXISTS pictures (
  id TEXT PRIMARY KEY, created REAL NOT NULL, kept INTEGER NOT NULL, job TEXT, sha256 TEXT NOT NULL,
  prompt TEXT NOT NULL, negative TEXT, seed INTEGER, width INTEGER NOT NULL, height INTEGER NOT NULL, steps INTEGER,
  guidance REAL, sampler TEXT, spacing TEXT, model TEXT, parents TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pictures_by_content ON pictures (sha256);
CREATE INDEX IF NOT EXISTS pictures_by_job ON pictures (job);
CREATE TABLE IF NOT EXISTS uploads (
  id TEXT PRIMARY KEY, created REAL NOT NULL, sha256 TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, created REAL NOT NULL, state TEXT NOT NULL, requests TEXT NOT NULL, error TEXT, key TEXT,
  body TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_key ON jobs (key);
"""

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """One page of the gallery, newest first."""

    pictures: list[dict[str, Any]]  # Any: columns of a row
    next: str | None
    total: int


def held(path: Path) -> IO[str]:
    """The file, held by this process until it is closed or the process ends; where locks are (POSIX).

    Raises: BlockingIOError if another one holds it.
    """
    file = path.open("a")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
    return file


class Store:
    """The folder and its index. Every method may be called from any thread; they take turns."""

    def __init__(self, folder: Path) -> None:
        """Raises: RequestError if the folder cannot be used."""
        self.folder = folder
        self._lock = threading.RLock()
        try:
            for name in ("pictures", "passing", "uploads", "thumbs", "stories"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._held = held(folder / LOCK)
        except BlockingIOError:
            raise RequestError(
                f"gallery {str(folder)!r} is in use by another server; stop that first, or take another --gallery"
            ) from None
        except OSError as error:
            raise RequestError(f"gallery {str(folder)!r} cannot be written to: {error.strerror or error}") from None
        try:
            self._database = self._opened()
            self.sweep()
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        """Write what is pending and let go of the index."""
        with self._lock:
            self._database.close()
            self._held.close()

    # pictures

    def add_picture(self, name: str, png: bytes, *, job: str | None, is_kept: bool) -> dict[str, Any]:  # Any: columns
        """Put a finished picture into the folder, then into the index."""
        path = self._path(name, is_kept=is_kept)
        with atomic(path) as file:
            file.write(png)
        with atomic(self._thumb(name)) as file:
            file.write(thumbnail(png))
        return self._index(name, path, png, job=job, is_kept=is_kept)

    def picture(self, name: str) -> dict[str, Any] | None:  # Any: columns of a row
        """What the index says about a picture."""
        if not is_id(name, "p"):
            return None
        return self._row("SELECT * FROM pictures WHERE id = ?", name)

    def picture_bytes(self, name: str) -> bytes | None:
        """The file of a picture, kept or passing."""
        row = self.picture(name)
        return None if row is None else _read(self._path(name, is_kept=bool(row["kept"])))

    def thumb_bytes(self, name: str) -> bytes | None:
        """A small WebP of a picture."""
        if self.picture(name) is None:
            return None
        if (found := _read(self._thumb(name))) is None and (png := self.picture_bytes(name)) is not None:
            found = thumbnail(png)
            with atomic(self._thumb(name)) as file:
                file.write(found)
        return found

    def pictures_of(self, job: str) -> list[dict[str, Any]]:  # Any: columns of rows
        """Pictures that a job has made, in their order."""
        return self._rows("SELECT * FROM pictures WHERE job = ? ORDER BY id", job)

    def search(
        self,
        words: str = "",
        *,
        model: str | None = None,
        sampler: str | None = None,
        before: str | None = None,
        limit: int = 60,
    ) -> Found:
        """Kept pictures whose prompts contain every word."""
        where, values = ["kept = 1"], list[object]()
        for word in words.split()[:20]:
            where.append("(prompt || ' ' || coalesce(negative, '')) LIKE ? ESCAPE '\\'")
            values.append("%" + "".join("\\" + sign if sign in "%_\\" else sign for sign in word) + "%")
        for column, value in (("model", model), ("sampler", sampler)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        total = self._row(f"SELECT count(*) AS n FROM pictures WHERE {' AND '.join(where)}", *values)
        if is_id(before, "p"):
            where.append("id < ?")
            values.append(before)
        limit = max(1, min(MAX_FOUND, limit))
        rows = self._rows(
            f"SELECT * FROM pictures WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?", *values, limit + 1
        )
        return Found(rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None, total["n"] if total else 0)

    def delete_picture(self, name: str) -> bool:
        """Take a picture out of index and folder; False if there is none."""
        row = self.picture(name)
        if row is None:
            return False
        for path in (self._path(name, is_kept=bool(row["kept"])), self._thumb(name)):
            path.unlink(missing_ok=True)
        with self._changed() as database:
            database.execute("DELETE FROM pictures WHERE id = ?", (name,))
        return True

    # uploads

    def add_upload(self, png: bytes) -> dict[str, Any]:  # Any: columns of a row
        """Keep a given picture, which has been decoded and encoded again by whoever calls."""
        name = new_id("u")
        with atomic(self._upload(name)) as file:
            file.write(png)
        width, height = open_image(png).size
        digest = hashlib.sha256(png).hexdigest()
        with self._changed() as database:
            database.execute("INSERT INTO uploads VALUES (?,?,?,?,?)", (name, time.time(), digest, width, height))
        return {"id": name, "sha256": digest, "width": width, "height": height}

    def source_bytes(self, name: object) -> bytes | None:
        """The file that a request calls by this id: an upload, or a picture."""
        if is_id(name, "u"):
            return _read(self._upload(str(name)))
        return self.picture_bytes(str(name)) if is_id(name, "p") else None

    def id_of_content(self, sha256: str) -> str | None:
        """The id of the picture or upload whose file has this hash."""
        for table in ("pictures", "uploads"):
            if row := self._row(f"SELECT id FROM {table} WHERE sha256 = ?", sha256):
                return str(row["id"])
        return None

    # stories

    def add_story(self, job: str, story: bytes) -> None:
        """Keep the story that a job told."""
        with atomic(self._story(job)) as file:
            file.write(story)
        self._expire_stories(time.time())

    def story_bytes(self, job: str) -> bytes | None:
        """The story of a job."""
        return _read(self._story(job)) if is_id(job, "j") else None

    def story_size(self, job: str) -> int | None:
        """Its bytes; None if there is none."""
        path = self._story(job)
        return path.stat().st_size if is_id(job, "j") and path.is_file() else None

    def _expire_stories(self, now: float) -> None:
        stories = [path for path in (self.folder / "stories").glob("j_*.json") if is_id(path.stem, "j")]
        for place, path in enumerate(sorted(stories, reverse=True)):
            if place >= MAX_STORIES or moment_of(path.stem) < now - JOBS_S:
                path.unlink(missing_ok=True)

    # jobs

    def add_job(self, name: str, requests: object, *, key: str | None, body: str) -> None:
        """Remember a job before anybody is told that it was taken."""
        with self._changed() as database:
            values = (name, time.time(), "queued", json.dumps(requests), key, body)
            database.execute("INSERT INTO jobs (id, created, state, requests, key, body) VALUES (?,?,?,?,?,?)", values)

    def end_job(self, name: str, state: str, error: object = None) -> None:
        """A job has ended so."""
        with self._changed() as database:
            database.execute(
                "UPDATE jobs SET state = ?, error = ? WHERE id = ?", (state, error and json.dumps(error), name)
            )

    def job(self, name: str) -> dict[str, Any] | None:  # Any: columns of a row
        """What is remembered of a job."""
        return self._row("SELECT * FROM jobs WHERE id = ?", name) if is_id(name, "j") else None

    def job_with_key(self, key: str) -> dict[str, Any] | None:  # Any: columns of a row
        """The job that was taken with this idempotency key."""
        return self._row("SELECT * FROM jobs WHERE key = ?", key)

    def recent_jobs(self) -> list[dict[str, Any]]:  # Any: columns of rows
        """Jobs of the last hour, newest first."""
        return self._rows("SELECT * FROM jobs ORDER BY id DESC LIMIT 100")

    # order

    def expire(self, now: float | None = None) -> None:
        """Delete what was to be kept only for a while."""
        now = time.time() if now is None else now
        passing = self._rows("SELECT id FROM pictures WHERE kept = 0 AND created < ?", now - PASSING_S)
        for row in passing:
            self.delete_picture(row["id"])
        for row in self._rows("SELECT id FROM uploads WHERE created < ?", now - UPLOADS_S):
            self._upload(row["id"]).unlink(missing_ok=True)
        self._expire_stories(now)
        with self._changed() as database:
            database.execute("DELETE FROM uploads WHERE created < ?", (now - UPLOADS_S,))
            database.execute(f"DELETE FROM jobs WHERE created < ? AND state NOT IN {UNFINISHED}", (now - JOBS_S,))

    def sweep(self) -> None:
        """Make folder and index agree, and mark jobs that a crash interrupted."""
        sweep(self.folder)
        files = {path.stem: path for path in self._picture_files()}
        rows = {row["id"]: row for row in self._rows("SELECT id, kept FROM pictures")}
        with self._changed() as database:
            gone = [(name,) for name in rows if name not in files]
            database.executemany("DELETE FROM pictures WHERE id = ?", gone)
            uploads = {path.stem: path for path in (self.folder / "uploads").glob("u_*.png")}
            known = {row["id"] for row in self._rows("SELECT id FROM uploads")}
            for name in uploads.keys() - known:
                uploads[name].unlink(missing_ok=True)
            lost = [(name,) for name in known - uploads.keys()]
            database.executemany("DELETE FROM uploads WHERE id = ?", lost)
            error = json.dumps({"code": "interrupted", "detail": "the server was ended in between", "retryable": True})
            database.execute(f"UPDATE jobs SET state = 'failed', error = ? WHERE state IN {UNFINISHED}", (error,))
        for thumb in (self.folder / "thumbs").glob("p_*.webp"):
            if thumb.stem not in files:
                thumb.unlink(missing_ok=True)
        for name, path in files.items():
            if name not in rows:
                self._index_file(name, path)
        self.expire()

    def reindex(self) -> int:
        """Forget the index and make it again from the files; how many pictures it has."""
        with self._changed() as database:
            database.execute("DELETE FROM pictures")
        self.sweep()
        row = self._row("SELECT count(*) AS n FROM pictures")
        return row["n"] if row else 0

    # inside

    def _opened(self) -> sqlite3.Connection:
        """The index; one that cannot be read is put aside, and `sweep` fills a fresh one."""
        path = self.folder / INDEX
        try:
            return _connected(path)
        except sqlite3.DatabaseError:
            aside = path.with_name(f"{INDEX}.damaged-{int(time.time())}")
            log.error("the index is damaged: it is put aside as %s and made again from the files", aside.name)
            path.replace(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(INDEX + suffix).unlink(missing_ok=True)
            return _connected(path)

    def _picture_files(self) -> Generator[Path]:
        for place in ("pictures", "passing"):
            for path in (self.folder / place).rglob("p_*.png"):
                if is_id(path.stem, "p") and not path.is_symlink():
                    yield path

    def _index_file(self, name: str, path: Path) -> None:
        png = _read(path)
        try:
            if png is not None:
                is_kept = path.parent.name != "passing"
                self._index(name, path, png, job=None, is_kept=is_kept)
        except MezzotintError as error:
            log.warning("%s is not in the gallery: %s", path.name, error)

    def _index(
        self, name: str, path: Path, png: bytes, *, job: str | None, is_kept: bool
    ) -> dict[str, Any]:  # Any: columns of a row
        """A picture's row, from what its file says."""
        record = read_metadata(png).record or {}
        request = cast(dict[str, Any], record.get("resolved", {}).get("request", {}))  # Any: JSON
        model = cast(dict[str, Any], record.get("model", {}).get("unet", {}))  # Any: JSON
        width, height = open_image(png).size
        row: dict[str, Any] = {  # Any: columns
            "id": name,
            "created": moment_of(name),
            "kept": int(is_kept),
            "job": job,
            "sha256": hashlib.sha256(png).hexdigest(),
            "prompt": str(request.get("prompt", "")),
            "negative": request.get("negative"),
            "seed": request.get("seed"),
            "width": width,
            "height": height,
            "steps": request.get("steps"),
            "guidance": request.get("guidance"),
            "sampler": request.get("sampler"),
            "spacing": request.get("spacing"),
            "model": model.get("name"),
            "parents": json.dumps(record.get("parents", [])),
        }
        with self._changed() as database:
            database.execute(
                f"INSERT OR REPLACE INTO pictures ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )
        return row

    def _path(self, name: str, *, is_kept: bool) -> Path:
        month = time.strftime("%Y-%m", time.gmtime(moment_of(name)))
        return self.folder / ("pictures" if is_kept else "passing") / (month if is_kept else "") / f"{name}.png"

    def _upload(self, name: str) -> Path:
        return self.folder / "uploads" / f"{name}.png"

    def _story(self, job: str) -> Path:
        return self.folder / "stories" / f"{job}.json"

    def _thumb(self, name: str) -> Path:
        return self.folder / "thumbs" / f"{name}.webp"

    @contextmanager
    def _changed(self) -> Generator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database

    def _rows(self, query: str, *values: object) -> list[dict[str, Any]]:  # Any: columns of rows
        with self._lock:
            return [dict(row) for row in self._database.execute(query, values)]

    def _row(self, query: str, *values: object) -> dict[str, Any] | None:  # Any: columns of a row
        return next(iter(self._rows(query, *values)), None)


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("damaged")
        database.executescript(_TABLES)
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


def _read(path: Path) -> bytes | None:
    """The bytes of a file of the folder; None if there is none, or a link in its place."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        return file.read()
