"""Hashes of model files, and when they are computed again."""

import hashlib
import os
from pathlib import Path

import pytest

from mezzotint.errors import CheckpointError
from mezzotint.pipeline import hashes


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def test_a_hash_is_computed_once_and_again_after_a_change(model: Path, monkeypatch: pytest.MonkeyPatch):
    expected = hashlib.sha256(b"weights").hexdigest()
    assert hashes.start_hash([model]).result() == expected
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return "new"

    monkeypatch.setattr(hashes, "sha256_of", counted)
    assert hashes.start_hash([model]).result() == expected
    os.utime(model, ns=(0, 1))
    assert hashes.start_hash([model]).result() == "new"
    assert read == [model]


def test_shards_have_one_hash(model: Path):
    one = hashes.start_hash([model]).result()
    assert hashes.start_hash([model, model]).result() == hashlib.sha256((one + one).encode()).hexdigest()


def test_a_damaged_cache_and_a_missing_file(model: Path, tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "sha256.json").write_text("{")
    assert len(hashes.start_hash([model]).result()) == 64
    with pytest.raises((CheckpointError, OSError), match="absent"):
        hashes.start_hash([tmp_path / "absent"]).result()
