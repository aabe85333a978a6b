"""Small random models, made and saved by diffusers: what our pictures are compared with."""

import json
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

SIDE = 64  # pixels of every picture here; latents are 16x16

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def _diffusers() -> Any:  # Any: untyped
    return import_module("diffusers")


def _transformers() -> Any:  # Any: untyped
    return import_module("transformers")


def _tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:  # Any: transformers is untyped
    """CLIP's tokenizer with bytes for pieces: 514 ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return _transformers().CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77
    )


def _text(width: int = 32, projection: int | None = None, **options: object) -> Any:  # Any: transformers is untyped
    t = _transformers()
    config = t.CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=projection or 32, **options,
    )  # fmt: skip
    return (t.CLIPTextModelWithProjection if projection else t.CLIPTextModel)(config).eval()


def _vae(**options: object) -> Any:  # Any: diffusers is untyped
    blocks = 3
    return _diffusers().AutoencoderKL(
        block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **options,
    ).eval()  # fmt: skip


def _unet(**options: object) -> Any:  # Any: diffusers is untyped
    settings: dict[str, Any] = {  # Any: diffusers' own options
        "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
        "attention_head_dim": 4, "sample_size": SIDE // 4, "in_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    unet = _diffusers().UNet2DConditionModel(**settings | options).eval()
    with torch.no_grad():  # a fresh U-Net says almost 0: let it say something of unit size
        unet.conv_out.weight.mul_(6)
    return unet


def _xl_unet(context: int, ids: int, **options: object) -> Any:  # Any: diffusers is untyped
    return _unet(
        cross_attention_dim=context, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=32 + ids * 256, **options,
    )  # fmt: skip


def _pipeline(kind: str, folder: Path) -> Any:  # Any: diffusers is untyped
    d = _diffusers()
    plain: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    leading = SCHEDULE | {"timestep_spacing": "leading", "steps_offset": 1}
    pndm = leading | {"skip_prk_steps": True, "set_alpha_to_one": False}
    tokenizer = _tokenizer(folder / "tok")
    if kind in {"sd1", "inpaint"}:
        cls = d.StableDiffusionPipeline if kind == "sd1" else d.StableDiffusionInpaintPipeline
        unet = _unet(in_channels=4 if kind == "sd1" else 9)
        return cls(
            vae=_vae(), text_encoder=_text(), tokenizer=tokenizer, unet=unet, scheduler=d.PNDMScheduler(**pndm), **plain
        )
    if kind == "sd2-v":
        scheduler = d.DDIMScheduler(
            **leading, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False
        )
        text = _text(hidden_act="gelu")
        unet = _unet(use_linear_projection=True, attention_head_dim=(4, 8))
        return d.StableDiffusionPipeline(
            vae=_vae(), text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, **plain
        )
    euler = d.EulerDiscreteScheduler(**leading, interpolation_type="linear", use_karras_sigmas=False)
    second = {
        "text_encoder_2": _text(projection=32, hidden_act="gelu"),
        "tokenizer_2": _tokenizer(folder / "tok2", "!"),
    }
    vae = _vae(scaling_factor=0.13025, force_upcast=False)
    if kind == "xl":
        return d.StableDiffusionXLPipeline(
            vae=vae, text_encoder=_text(), tokenizer=tokenizer, **second, unet=_xl_unet(64, 6), scheduler=euler
        )
    if kind == "refiner":
        return d.StableDiffusionXLImg2ImgPipeline(
            vae=vae, text_encoder=None, tokenizer=None, **second, unet=_xl_unet(32, 5), scheduler=euler,
            requires_aesthetics_score=True, force_zeros_for_empty_prompt=False,
        )  # fmt: skip
    assert kind == "unclip"
    t = _transformers()
    vision = t.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=24,
        patch_size=56,
    )
    normalizer = import_module("diffusers.pipelines.stable_diffusion").StableUnCLIPImageNormalizer(24)
    with torch.no_grad():
        normalizer.mean.normal_()
        normalizer.std.uniform_(0.5, 2)
    return d.StableUnCLIPImg2ImgPipeline(
        feature_extractor=t.CLIPImageProcessor(), image_encoder=t.CLIPVisionModelWithProjection(vision).eval(),
        image_normalizer=normalizer, image_noising_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer, text_encoder=_text(hidden_act="gelu"),
        unet=_unet(use_linear_projection=True, class_embed_type="projection", projection_class_embeddings_input_dim=48),
        scheduler=d.DDIMScheduler(**leading, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False),
        vae=_vae(),
    )  # fmt: skip


Reference = Callable[[str], tuple[Any, Path]]  # Any: diffusers is untyped


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """kind -> (diffusers pipeline, the folder that it saved); made once."""
    made: dict[str, tuple[Any, Path]] = {}  # Any: diffusers is untyped

    def make(kind: str) -> tuple[Any, Path]:  # Any: diffusers is untyped
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            seeded: Any = torch.random  # Any: torch leaves these functions untyped
            with seeded.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # diffusers' and transformers' own
                seeded.manual_seed(sum(map(ord, kind)))
                pipe = _pipeline(kind, folder)
                pipe.save_pretrained(folder / "model")
            pipe.set_progress_bar_config(disable=True)
            made[kind] = pipe, folder / "model"
        return made[kind]

    return make


@pytest.fixture
def photo() -> Image.Image:
    """A smooth picture with every colour in it."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    pixels = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    return Image.fromarray((pixels * 255).astype(np.uint8))


@pytest.fixture
def mask() -> Image.Image:
    """White where the picture is to be made again: its right half but for a border."""
    return Image.fromarray(np.pad(np.full((SIDE - 16, SIDE // 2 - 8), 255, np.uint8), ((8, 8), (SIDE // 2, 8))))
