"""A tiny model that stories are told of, made once."""

from pathlib import Path

import pytest

from cli.conftest import save_folder, tiny_checkpoint
from mezzotint.pipeline.system import System, load


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of 32 channels with CLIP's own vocabulary, as a folder."""
    folder = tmp_path_factory.mktemp("explain") / "model"
    save_folder(tiny_checkpoint(), folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> System:
    """The model in float32."""
    return load(tiny_folder, dtype="float32")
