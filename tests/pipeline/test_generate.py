"""Pictures and what surrounds them: seeds, progress, cancelling, files, and making them again."""

import itertools
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.errors import RequestError
from mezzotint.images import feathered, read_metadata, to_mask
from mezzotint.kernels.autoencoder import BandedAutoencoder
from mezzotint.kernels.choices import PLAIN
from mezzotint.pipeline.condition import told
from mezzotint.pipeline.drive import Predictor, drive
from mezzotint.pipeline.generate import expect, generate, recorded_source, replay, stream
from mezzotint.pipeline.picture import Studio
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.resolve import resolve
from mezzotint.pipeline.system import System, load
from models.oracles import relative

Reference = Callable[[str], tuple[Any, Path]]  # Any: diffusers is untyped

BASE: dict[str, Any] = {"prompt": "a red fox", "steps": 4, "guidance": 5.0}  # Any: fields of a request


@pytest.fixture
def system(reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    return load(reference("sd1")[1], dtype="float32")


def _pixels(image: Image.Image) -> np.ndarray[Any, Any]:  # Any: shape and type of pixels
    return np.asarray(image)


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_sde"])
def test_a_picture_is_the_same_alone_and_among_others(system: System, sampler: str):
    four = generate(system, **BASE, sampler=sampler, seed=7, count=4)
    assert four.seeds == [7, 8, 9, 10]
    alone = generate(system, **BASE, sampler=sampler, seed=9).images[0]
    assert np.array_equal(_pixels(four.images[2]), _pixels(alone))
    assert not np.array_equal(_pixels(four.images[1]), _pixels(alone))


def test_interleaved_pictures_are_those_made_one_after_another(system: System):
    resolved = resolve(system, Request(**BASE, seed=0, sampler="euler_ancestral"))
    studio = Studio(system, resolved, told(system, resolved.request))
    predict = Predictor({"base": system.network})

    def finished(seed: int) -> torch.Tensor:
        running = drive(studio.rows(seed), predict)
        while True:
            try:
                next(running)
            except StopIteration as end:
                return end.value

    apart = [finished(seed) for seed in (1, 2)]
    together: dict[int, torch.Tensor] = {}
    both = {seed: drive(studio.rows(seed), predict) for seed in (1, 2)}
    for seed in itertools.cycle((1, 2)):
        try:
            next(both[seed])
        except StopIteration as end:
            together[seed] = end.value
            if len(together) == 2:
                break
    assert torch.equal(together[1], apart[0])
    assert torch.equal(together[2], apart[1])


def test_a_seed_that_was_drawn_is_recorded(system: System):
    first = generate(system, **BASE)
    again = generate(system, **BASE, seed=first.seeds[0])
    assert np.array_equal(_pixels(first.images[0]), _pixels(again.images[0]))


@pytest.mark.parametrize("sampler", ["ddim", "plms", "heun", "dpmpp_sde", "restart"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_progress_counts_what_is_evaluated(system: System, sampler: str, steps: int):
    running = stream(system, prompt="x", steps=steps, sampler=sampler, count=2, seed=1)
    seen = list(running)
    assert [progress.evaluation for progress in seen] == list(range(1, len(seen) + 1))
    assert {progress.evaluations for progress in seen} == {len(seen)}
    assert [progress.image for progress in seen] == sorted(progress.image for progress in seen)
    assert (seen[0].step, seen[-1].step, seen[-1].steps) == (1, steps, steps)
    assert seen[-1].seconds_left == 0
    assert len(running.result.images) == 2


def test_a_preview_resembles_the_picture(system: System):
    """The linear map is right where the decoder is linear: on the colours that it was fitted to."""
    latent = system.encode(torch.full((1, 3, 32, 32), 0.9)).mean
    weights = system.preview(latent)
    assert weights.size == (8, 8)
    running = stream(system, **BASE, seed=1)
    assert next(running).preview().size == (16, 16)
    running.close()


def test_closing_stops_before_the_next_evaluation(system: System):
    asked: list[int] = []

    def count(*_: object) -> None:
        asked.append(1)

    hook = system.unet.register_forward_pre_hook(count)
    running = stream(system, **BASE, seed=1)
    next(running)
    next(running)
    running.close()
    assert list(running) == []
    hook.remove()
    assert len(asked) == 2
    with pytest.raises(RuntimeError, match="the stream has not ended"):
        _ = running.result


def test_a_picture_is_decoded_between_yields(system: System):
    """What a server interleaves and cancels. Closing stops there."""
    autoencoder = system.kernels.autoencoder(system.vae)
    assert isinstance(autoencoder, BandedAutoencoder)
    autoencoder.band_bytes = 1
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images: list[torch.Tensor] = []

    def keeping() -> Generator[None]:
        images.append((yield from system.decoding(latent)))

    assert len(list(keeping())) > 20
    assert torch.equal(images[0], system.decode(latent))
    expected = system.vae.decode(latent)
    assert relative(images[0], expected) < 1e-5


def test_saved_pictures_carry_their_record_and_never_overwrite(system: System, tmp_path: Path):
    result = generate(system, **BASE, seed=5, count=2, negative="grey", sampler="DPM++ 2M Karras")
    paths = result.save(tmp_path / "out")
    assert [path.name for path in paths] == ["00001-5.png", "00002-6.png"]
    assert [path.name for path in result.save(tmp_path / "out")] == ["00003-5.png", "00004-6.png"]
    metadata = read_metadata(paths[1])
    assert metadata.infotext is not None
    assert (metadata.infotext.prompt, metadata.infotext.negative) == ("a red fox", "grey")
    items = metadata.infotext.items
    assert (items["Sampler"], items["Schedule type"]) == ("DPM++ 2M", "karras")
    assert (items["Seed"], items["Size"]) == ("6", "64x64")
    assert items["RNG"] == "CPU"
    record = metadata.record
    assert record is not None
    assert record["schema"] == 1
    assert record["request"] == {
        "prompt": "a red fox", "negative": "grey", "steps": 4, "guidance": 5.0, "seed": 5, "count": 2,
        "sampler": "dpmpp_2m", "spacing": "karras",
    }  # fmt: skip
    resolved = record["resolved"]["request"]
    assert (resolved["seed"], resolved["width"], resolved["steps"]) == (6, 64, 4)
    assert len(record["model"]["unet"]["sha256"]) == 64
    assert items["Model hash"] == record["model"]["unet"]["sha256"][:10]
    assert record["execution"]["dtype"] == "float32"


def test_a_failed_save_leaves_nothing(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = generate(system, **BASE, seed=5)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RequestError, match="cannot be written: No space left on device"):
        result.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_replay_gives_equal_bits_and_says_so(system: System, tmp_path: Path, photo: Image.Image):
    photo.save(tmp_path / "photo.png")
    result = generate(system, **BASE, seed=5, count=2, image=tmp_path / "photo.png", strength=0.8, sampler="lcm")
    path = result.save(tmp_path)[1]
    assert recorded_source(path) == (system.place.source, "float32", system.kernels.kernels.recorded())
    assert expect(path, system).is_exact
    assert replay(path, system).difference == 0
    (tmp_path / "photo.png").rename(tmp_path / "moved.png")
    with pytest.raises(RequestError, match=r"photo.png' cannot be read: No such file"):
        replay(path, system)
    assert replay(path, system, image=tmp_path / "moved.png").difference == 0


def test_replay_says_what_has_changed(system: System, reference: Reference, tmp_path: Path):
    path = generate(system, **BASE, seed=5).save(tmp_path)[0]
    other = load(reference("sd2-v")[1], dtype="bfloat16")
    expectation = expect(path, other)
    assert not expectation.is_exact
    assert any(line.startswith("unet: sha256 ") for line in expectation.differences)
    assert "dtype: 'bfloat16', was 'float32'" in expectation.differences
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(RequestError, match="carries no mezzotint record"):
        replay(tmp_path / "foreign.png", system)


def test_pixels_outside_the_mask_are_the_inputs_own(system: System, photo: Image.Image, mask: Image.Image):
    result = generate(system, **BASE, seed=1, image=photo, mask=mask, feather=4)
    outside = _pixels(feathered(to_mask(mask), 4)) == 0
    assert outside.sum() > 1000
    assert np.array_equal(_pixels(result.images[0])[outside], _pixels(photo)[outside])
    assert not np.array_equal(_pixels(result.images[0]), _pixels(photo))
    loose = generate(system, **BASE, seed=1, image=photo, mask=mask, feather=4, paste=False).images[0]
    assert not np.array_equal(_pixels(loose)[outside], _pixels(photo)[outside])


def test_a_picture_larger_than_the_model_is_pasted_at_its_own_size(
    system: System, photo: Image.Image, mask: Image.Image
):
    large, hole = photo.resize((200, 160)), mask.resize((200, 160), Image.Resampling.NEAREST)
    made = generate(system, **BASE, seed=1, image=large, mask=hole, feather=0).images[0]
    outside = _pixels(hole) < 128
    assert np.array_equal(_pixels(made)[outside], _pixels(large)[outside])
    assert not np.array_equal(_pixels(made), _pixels(large))
    sized = generate(system, **BASE, seed=1, image=large, mask=hole, width=64, height=64).images[0]
    assert sized.size == (64, 64)
    with pytest.raises(RequestError, match="canvas: is for a mask with paste"):
        generate(system, **BASE, image=large, canvas=(200, 160))


def test_words_that_do_not_fit_are_told(system: System):
    text = "word " * 20 + "last"
    result = generate(system, prompt=text, steps=1, seed=1)
    (warning,) = result.warnings
    assert warning.startswith("prompt: ")
    assert warning.endswith("last")
    assert result.metadata[0]["warnings"] == [warning]
    with pytest.raises(RequestError, match="words do not fit into the text encoder"):
        generate(system, prompt=text, steps=1, seed=1, strict=True)


def test_bfloat16_is_close_to_float32(system: System, reference: Reference):
    fast = load(reference("sd1")[1], dtype="bfloat16")
    one, other = (_pixels(generate(each, **BASE, seed=1).images[0]).astype(float) for each in (system, fast))
    assert np.sqrt(((one - other) ** 2).mean()) < 6  # of 255


def test_the_guidance_interval_limits_guidance(system: System):
    off = generate(system, **BASE | {"guidance": 1.0}, seed=1)
    never = generate(system, **BASE, seed=1, guidance_interval=(100.0, 200.0))
    part = generate(system, **BASE, seed=1, guidance_interval=(0.3, 5.0))
    full = generate(system, **BASE, seed=1)
    # rows are then batches of one in both: bits are equal
    assert np.array_equal(_pixels(off.images[0]), _pixels(never.images[0]))
    assert not np.array_equal(_pixels(part.images[0]), _pixels(full.images[0]))


def test_an_icon_is_made_by_a_trained_model(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trained weights: the picture of a red heart has more red than green, and replays exactly."""
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    system = load(trained_folder, dtype="float32")
    result = generate(system, prompt="a red heart, noto emoji", steps=12, seed=5, sampler="ddim")
    pixels = _pixels(result.images[0]).astype(float)
    assert pixels.shape == (64, 64, 3)
    assert pixels[..., 0].mean() > pixels[..., 1].mean() + 60
    path = result.save(tmp_path)[0]
    assert json.loads(json.dumps(result.metadata[0])) == read_metadata(path).record
    assert replay(path, system).difference == 0


def test_a_picture_is_made_again_with_the_kernels_that_made_it(reference: Reference, system: System, tmp_path: Path):
    folder = reference("sd1")[1]
    plain = load(folder, dtype="float32", kernels="torch")
    path = generate(plain, **BASE, seed=5).save(tmp_path)[0]
    recorded = recorded_source(path)
    assert recorded.kernels == PLAIN.recorded()
    again = load(folder, dtype=recorded.dtype, kernels=recorded.kernels)
    assert expect(path, again).is_exact
    assert replay(path, again).difference == 0
    assert [difference.split(":")[0] for difference in expect(path, system).differences] == ["kernels"]
    difference = replay(path, system).difference
    assert difference is not None
    assert difference <= 1  # of 255: the same function, added up in another order


def test_a_prompt_is_encoded_once(system: System):
    encoded: list[int] = []

    def count(*_: object) -> None:
        encoded.append(1)

    hook = system.text[0].register_forward_pre_hook(count)
    first = generate(system, **BASE, seed=1)
    runs = len(encoded)
    assert runs > 0
    again = generate(system, **BASE, seed=1)
    assert len(encoded) == runs
    assert np.array_equal(_pixels(first.images[0]), _pixels(again.images[0]))
    generate(system, **BASE | {"prompt": "a blue bird"}, seed=1)
    generate(system, **BASE, seed=1, clip_skip=2)
    generate(system, **BASE, seed=1, negative="grey")
    assert len(encoded) >= runs + 3
    hook.remove()
