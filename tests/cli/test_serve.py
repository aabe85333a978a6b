"""`mezzotint serve`: what it refuses to begin with, and what it makes again."""

import socket
import sys
from pathlib import Path

import pytest

from cli.conftest import Command
from mezzotint.images import read_metadata


def test_an_address_that_others_can_reach_needs_a_key(mezzotint: Command) -> None:
    ran = mezzotint("serve", "-m", "model", "--host", "0.0.0.0", "--port", "0")
    assert ran.code == 2
    assert "0.0.0.0 can be reached from other machines: give a key with --key" in ran.err


def test_a_model_that_is_not_there_is_told_at_once(mezzotint: Command) -> None:
    ran = mezzotint("serve", "-m", "nowhere")
    assert ran.code == 1
    assert "'nowhere': no such file or folder, and not a hub id" in ran.err


def test_a_port_that_is_taken_is_named(mezzotint: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = mezzotint("serve", "-m", "model", "--port", str(port))
    assert ran.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ran.err


def test_the_index_is_made_again(mezzotint: Command, world: Path) -> None:
    made = mezzotint("generate", "a fox", "-m", "model", "--steps", "1").out.strip()
    month = world / "outputs" / "gallery" / "pictures" / "2026-11"
    month.mkdir(parents=True)
    Path(made).rename(month / "p_01m89q6wh5e4dv2xpxcya9fxwv.png")
    ran = mezzotint("serve", "--reindex")
    assert (ran.code, ran.out.strip()) == (0, "1 pictures in outputs/gallery")
    assert read_metadata(month / "p_01m89q6wh5e4dv2xpxcya9fxwv.png").record is not None


def test_without_its_packages_it_says_how_to_get_them(mezzotint: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mezzotint.serve.run")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ran = mezzotint("serve", "-m", "model")
    assert ran.code == 2
    assert "pip install 'mezzotint[serve]'" in ran.err
