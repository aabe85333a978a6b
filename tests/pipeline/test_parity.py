"""Pictures against diffusers' pipelines: same weights, same seed, and the scheduler of the same config."""

import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.system import System, load

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "plms": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
ENOUGH = 60  # dB

_systems: dict[str, System] = {}


def _loaded(folder: object) -> System:
    """The folder as we load it, in float32."""
    if str(folder) not in _systems:
        _systems[str(folder)] = load(str(folder), dtype="float32")
    return _systems[str(folder)]


def _theirs(pipe: Any, sampler: str | None = None, kind: str = "", **options: Any) -> Any:  # Any: diffusers
    """The picture of a diffusers pipeline, optionally with another scheduler and as another pipeline."""
    diffusers: Any = import_module("diffusers")  # Any: untyped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        if kind:
            pipe = getattr(diffusers, kind).from_pipe(pipe, **({} if "XL" in kind else {"safety_checker": None}))
            pipe.set_progress_bar_config(disable=True)
        own = pipe.scheduler
        if sampler:
            # where a config is silent, diffusers would clip x0 (DDIM, LCM) or start with Runge-Kutta steps (PNDM)
            silent = {"clip_sample": False, "skip_prk_steps": True}
            pipe.scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(own.config, **silent)
        try:
            seed = options.pop("seed", 0)
            generator = torch.Generator("cpu").manual_seed(seed)
            return pipe(prompt="a red fox", generator=generator, **options).images[0]
        finally:
            pipe.scheduler = own


def _psnr(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(image, dtype=np.float64) for image in (one, other))
    error = float(np.mean((a - b) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "xl"])
def test_text_to_image(reference: Any, kind: str, sampler: str):  # Any: a fixture of conftest
    pipe, folder = reference(kind)
    theirs = _theirs(pipe, sampler, num_inference_steps=8, guidance_scale=5.0, height=64, width=64)
    ours = generate(_loaded(folder), prompt="a red fox", sampler=sampler, steps=8, guidance=5.0, seed=0).images[0]
    assert _psnr(ours, theirs) >= ENOUGH
    assert np.asarray(ours).std() > 10  # a picture, not a plain


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_without_guidance(reference: Any, kind: str):  # Any: a fixture of conftest
    pipe, folder = reference(kind)
    theirs = _theirs(pipe, "ddim", num_inference_steps=4, guidance_scale=1.0, height=48, width=72)
    ours = generate(
        _loaded(folder), prompt="a red fox", sampler="ddim", steps=4, guidance=1.0, seed=0, height=48, width=72
    ).images[0]
    assert ours.size == (72, 48)
    assert _psnr(ours, theirs) >= ENOUGH


@pytest.mark.parametrize("negative", [None, "", "grey"])
@pytest.mark.parametrize("kind", ["sd2-v", "xl"])
def test_negative_prompts(reference: Any, kind: str, negative: str | None):  # Any: a fixture of conftest
    pipe, folder = reference(kind)
    theirs = _theirs(pipe, num_inference_steps=4, guidance_scale=5.0, height=64, width=64, negative_prompt=negative)
    ours = generate(_loaded(folder), prompt="a red fox", negative=negative, steps=4, guidance=5.0, seed=0).images[0]
    assert _psnr(ours, theirs) >= ENOUGH


def test_guidance_rescale(reference: Any):  # Any: a fixture of conftest
    pipe, folder = reference("sd2-v")
    theirs = _theirs(pipe, num_inference_steps=4, guidance_scale=9.0, guidance_rescale=0.7, height=64, width=64)
    options = {"steps": 4, "guidance": 9.0, "guidance_rescale": 0.7, "seed": 0}
    assert _psnr(generate(_loaded(folder), prompt="a red fox", **options).images[0], theirs) >= ENOUGH
    assert (
        _psnr(generate(_loaded(folder), prompt="a red fox", **options | {"guidance_rescale": 0}).images[0], theirs) < 50
    )


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "xl"])
def test_image_to_image(reference: Any, kind: str, sampler: str, photo: Image.Image):  # Any: a fixture of conftest
    pipe, folder = reference(kind)
    cls = "StableDiffusionXLImg2ImgPipeline" if kind == "xl" else "StableDiffusionImg2ImgPipeline"
    theirs = _theirs(pipe, sampler, cls, image=photo, strength=0.6, num_inference_steps=8, guidance_scale=5.0)
    ours = generate(
        _loaded(folder), prompt="a red fox", image=photo, strength=0.6, sampler=sampler, steps=8, guidance=5.0, seed=0
    ).images[0]
    assert _psnr(ours, theirs) >= ENOUGH


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
def test_inpainting(
    reference: Any, kind: str, sampler: str, strength: float, photo: Image.Image, mask: Image.Image
):  # Any: a fixture of conftest
    pipe, folder = reference(kind)
    cls = "StableDiffusionInpaintPipeline" if kind == "sd1" else ""
    settings: dict[str, Any] = {"image": photo, "strength": strength}  # Any: fields of two programs
    theirs = _theirs(
        pipe, sampler, cls, **settings, mask_image=mask, num_inference_steps=8, guidance_scale=5.0, height=64, width=64
    )
    ours = generate(
        _loaded(folder), prompt="a red fox", **settings, mask=mask, paste=False, sampler=sampler, steps=8, guidance=5.0,
        seed=0,
    ).images[0]  # fmt: skip
    assert _psnr(ours, theirs) >= ENOUGH


@pytest.mark.parametrize("noise", [0, 300])
@pytest.mark.parametrize("size", [(224, 224), (300, 260)])
def test_unclip(reference: Any, photo: Image.Image, size: tuple[int, int], noise: int):  # Any: a fixture of conftest
    pipe, folder = reference("unclip")
    picture = photo.resize(size)
    theirs = _theirs(
        pipe, image=picture, noise_level=noise, num_inference_steps=5, guidance_scale=5.0, height=64, width=64
    )
    ours = generate(
        _loaded(folder), prompt="a red fox", reference=picture, reference_crop="crop", reference_noise=noise, steps=5,
        guidance=5.0, seed=0,
    ).images[0]  # fmt: skip
    assert _psnr(ours, theirs) >= ENOUGH


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])  # diffusers' Heun hands over inside a step
def test_refiner_takes_over(reference: Any, sampler: str):  # Any: a fixture of conftest
    (base, base_folder), (refiner, refiner_folder) = reference("xl"), reference("refiner")
    common: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 5.0}  # Any: options of diffusers
    latent = _theirs(base, sampler, **common, height=64, width=64, denoising_end=0.7, output_type="latent")
    own, refiner.vae = refiner.vae, base.vae  # both published models have the same
    theirs = _theirs(refiner, sampler, **common, image=latent[None], denoising_start=0.7)
    refiner.vae = own
    options = {"sampler": sampler, "steps": 10, "guidance": 5.0, "seed": 0, "refiner_at": 0.7}
    ours = generate(_loaded(base_folder), prompt="a red fox", refiner=str(refiner_folder), **options).images[0]
    assert _psnr(ours, theirs) >= ENOUGH


def test_refiner_refines_a_picture(reference: Any, photo: Image.Image):  # Any: a fixture of conftest
    pipe, folder = reference("refiner")
    theirs = _theirs(pipe, image=photo, strength=0.5, num_inference_steps=8, guidance_scale=5.0)
    ours = generate(
        _loaded(folder), prompt="a red fox", image=photo, strength=0.5, steps=8, guidance=5.0, seed=0
    ).images[0]
    assert _psnr(ours, theirs) >= ENOUGH


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_trained_weights(trained_folder: Path, sampler: str):
    diffusers: Any = import_module("diffusers")  # Any: untyped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(trained_folder), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = _theirs(pipe, sampler, num_inference_steps=8, guidance_scale=7.5, height=64, width=64)
    options = {"sampler": sampler, "steps": 8, "guidance": 7.5, "seed": 0}
    assert _psnr(generate(_loaded(trained_folder), prompt="a red fox", **options).images[0], theirs) >= ENOUGH


def test_sizes_are_told_to_xl(reference: Any):  # Any: a fixture of conftest
    pipe, folder = reference("xl")
    theirs = _theirs(
        pipe, num_inference_steps=3, height=64, width=64, original_size=(200, 300), crops_coords_top_left=(4, 8)
    )
    options = {"steps": 3, "guidance": 5.0, "seed": 0}
    ours = generate(_loaded(folder), prompt="a red fox", original_size=(300, 200), crop=(8, 4), **options).images[0]
    assert _psnr(ours, theirs) >= ENOUGH
    assert _psnr(generate(_loaded(folder), prompt="a red fox", **options).images[0], theirs) < 50
