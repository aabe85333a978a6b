"""Tars: the same pictures as in folders, read where they lie; damage costs a line that names it."""

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Literal

import pytest

from data.test_filters import textured
from mezzotint.data.drawing import encoded
from mezzotint.data.pictures import read_pictures
from mezzotint.data.webdataset import read_tars
from mezzotint.errors import MezzotintError


def image(seed: int) -> bytes:
    return encoded(textured(seed, 16))


def write(path: Path, members: list[tuple[str, bytes]], mode: Literal["w", "w:gz"] = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(start: int) -> list[tuple[str, bytes]]:
    """Three samples as img2dataset writes them."""
    found: list[tuple[str, bytes]] = []
    for i in range(start, start + 3):
        row = {"key": f"{i:09d}", "caption": f"number {i}", "AESTHETIC_SCORE": 5.5, "url": "http://x", "exif": None}
        found += [(f"{i:09d}.webp", image(i)), (f"{i:09d}.json", json.dumps(row).encode())]
    return found


def test_folder_of_tars_is_one_set_in_order(tmp_path: Path) -> None:
    write(tmp_path / "00001.tar", shard(3))
    write(tmp_path / "00000.tar", shard(0))
    found = read_pictures(tmp_path).pictures
    assert [p.key for p in found] == [f"{i:09d}" for i in range(6)]
    assert [p.read() for p in found] == [image(i) for i in range(6)]
    assert found[4].captions == ("number 4",)
    assert found[4].numbers == {"AESTHETIC_SCORE": 5.5}
    assert found[4].columns["url"] == "http://x"


def test_members_may_lie_apart_and_texts_win(tmp_path: Path) -> None:
    members = [("a/x.txt", b"one\ntwo\n"), ("b/x.txt", b"other"), ("b/x.PNG", image(1)), ("a/x.png", image(0))]
    members.append(("a/x.json", b'{"caption": "third", "width": 16}'))
    found = read_tars(write(tmp_path / "s.tar", members))
    assert [(p.key, p.captions, p.read()) for p in found] == [
        ("s/a/x", ("one", "two"), image(0)),
        ("s/b/x", ("other",), image(1)),
    ]


def test_damage_costs_lines_that_name_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("a.png", image(0)), ("a.txt", b"a"), ("b.txt", b"no picture"), ("c.png", image(1)), ("c.json", b"{no")]
    members += [("a.png", image(2)), ("d.png", image(3)), ("d.txt", b"d"), ("e.png", image(4)), ("e.txt", b"e")]
    path = write(tmp_path / "s.tar", members)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"e.txt") + 100])  # within the last header
    with caplog.at_level(logging.WARNING):
        found = read_tars(path)
    assert [p.key for p in found] == ["s/a", "s/d", "s/e"]
    assert found[0].read() == image(0)
    said = "\n".join(record.getMessage() for record in caplog.records)
    for part in ("sample b has no picture", "sample c cannot be read", "a.png is there twice", "s.tar is damaged"):
        assert part in said
    assert len(caplog.records) == 4


@pytest.mark.parametrize("cut", [0, 300, 512, 700])
def test_tar_that_ends_or_breaks_anywhere_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    """tarfile itself takes a broken header for the end."""
    path = write(tmp_path / "s.tar", [("a.png", image(0)), ("a.txt", b"a"), ("b.png", image(1)), ("b.txt", b"b")])
    whole = path.read_bytes()
    header = whole.index(b"b.png")
    for broken in (whole[: header + cut], whole[:header] + b"\xff" * 512 + whole[header + 512 :]):
        path.write_bytes(broken)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            keys = [p.key for p in read_tars(path)]
        assert keys[:1] == ["s/a"]
        assert "s.tar is damaged at byte" in caplog.text
    path.write_bytes(whole)
    caplog.clear()
    assert len(read_tars(path)) == 2
    assert not caplog.records


def test_file_cut_short_after_indexing_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "s.tar",
        [(f"{i}.{kind}", image(i) if kind == "png" else b"x") for i in range(2) for kind in ("png", "txt")],
    )
    found = read_pictures(path)
    path.write_bytes(path.read_bytes().replace(image(1), b"\0" * len(image(1))))
    with caplog.at_level(logging.WARNING):
        pixels = found.pixels([1, 0], 8)
    assert (pixels[0] == pixels[1]).all()
    assert "s/1 cannot be decoded and is replaced" in caplog.text


def test_compressed_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MezzotintError, match="compressed tars cannot be read in place, unpack them"):
        read_tars(write(tmp_path / "s.tar", shard(0), "w:gz"))
