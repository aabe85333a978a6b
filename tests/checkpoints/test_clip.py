"""One CLIP in every layout is read as the same tensors; what does not say enough is refused with what to do."""

import json
from pathlib import Path

import pytest
import torch

from evaluation.towers import IMAGE, TEXT, open_clip_state, small_clip, write_ours, write_transformers
from mezzotint.checkpoints.clip import ClipFiles, read_clip
from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import CLIP, CLIP_MEAN

OPEN_CLIP = {
    "model_cfg": {"quick_gelu": True, "text_cfg": {"heads": 1}, "vision_cfg": {"head_width": 64}},
    "preprocess_cfg": {"mean": list(CLIP_MEAN)},
}


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return small_clip()


def is_same(found: ClipFiles, clip: CLIP) -> bool:
    built = found.build()
    state = clip.state_dict()
    same = [torch.equal(tensor, state[name]) for name, tensor in built.state_dict().items()]
    return all(same) and built.image.config == IMAGE


def test_our_own_folder_and_a_runs(clip: CLIP, tmp_path: Path) -> None:
    write_ours(clip, tmp_path / "run" / "export")
    found = read_clip(tmp_path / "run")
    assert is_same(found, clip)
    assert found.name == "run"
    assert is_same(read_clip(tmp_path / "run" / "export"), clip)


def test_transformers_folder(clip: CLIP, tmp_path: Path) -> None:
    write_transformers(clip, tmp_path / "model")
    found = read_clip(tmp_path / "model")
    assert is_same(found, clip)
    assert found.text == TEXT
    assert found.name == "model"


def test_open_clip_folder_and_file(clip: CLIP, tmp_path: Path) -> None:
    folder = tmp_path / "models--laion--CLIP-small" / "snapshots" / "1"
    folder.mkdir(parents=True)
    write_state(folder / "open_clip_model.safetensors", open_clip_state(clip))
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    for place in (folder, folder / "open_clip_model.safetensors"):
        found = read_clip(place)
        assert is_same(found, clip)
        assert found.name == "laion/CLIP-small"


def test_activation_and_heads_come_from_open_clips_config(clip: CLIP, tmp_path: Path) -> None:
    write_state(tmp_path / "weights.safetensors", open_clip_state(clip))
    told = {**OPEN_CLIP, "model_cfg": {"text_cfg": {"heads": 2}, "vision_cfg": {"head_width": 32}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    found = read_clip(tmp_path / "weights.safetensors")
    assert (found.text.activation, found.text.heads, found.image.heads) == ("gelu", 2, 4)


def test_openais_file_says_all_by_itself(clip: CLIP, tmp_path: Path) -> None:
    own = {name: torch.tensor(size) for name, size in (("input_resolution", 64), ("context_length", 77))}
    write_state(tmp_path / "ViT.safetensors", {**open_clip_state(clip), **own, "vocab_size": torch.tensor(49408)})
    assert is_same(read_clip(tmp_path / "ViT.safetensors"), clip)


def test_bare_weights_are_refused(clip: CLIP, tmp_path: Path) -> None:
    write_state(tmp_path / "weights.safetensors", open_clip_state(clip))
    with pytest.raises(CheckpointError, match=r"do not say their activation and heads; put .*open_clip_config\.json"):
        read_clip(tmp_path / "weights.safetensors")


def test_refusals_say_what_is_expected(clip: CLIP, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such CLIP"):
        read_clip(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no CLIP in this folder"):
        read_clip(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    with pytest.raises(CheckpointError, match="a text encoder alone cannot judge pictures"):
        read_clip(tmp_path / "text")
    write_ours(clip, tmp_path / "ours")
    write_state(tmp_path / "ours" / "clip.safetensors", {"text.x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"is missing|is not expected"):
        read_clip(tmp_path / "ours")
    write_transformers(clip, tmp_path / "siglip")
    (tmp_path / "siglip" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(CheckpointError, match=r"image_mean .*CLIP's.* expected"):
        read_clip(tmp_path / "siglip")
