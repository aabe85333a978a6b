"""Every model of the family is named from names, shapes and configs; what cannot be named is explained."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils

from checkpoints import headers
from mezzotint.checkpoints.detect import detect
from mezzotint.checkpoints.detection import Detection, describe, lines
from mezzotint.checkpoints.files import Header, TensorInfo, read_header, write_state
from mezzotint.checkpoints.objective import NORM_BIAS_LIMIT
from mezzotint.checkpoints.signatures import RULES, find_unet
from mezzotint.errors import CheckpointError

CROSS = "transformer_blocks.0.attn2.to_k.weight"
SD1_CONTEXT = f"model.diffusion_model.input_blocks.1.1.{CROSS} [320, 768]"
SD2_CONTEXT = f"model.diffusion_model.input_blocks.1.1.{CROSS} [320, 1024]"
XL_CONTEXT = f"model.diffusion_model.input_blocks.4.1.{CROSS} [640, 2048]"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
VECTOR = "model.diffusion_model.label_emb.0.0.weight"

# preset of the header -> (what is detected, variant, objective, the key that decides)
EXPECTED = {
    "sd15": ("sd15", "text", "epsilon", SD1_CONTEXT),
    "sd15-inpaint": ("sd15-inpaint", "inpaint", "epsilon", f"{FIRST} [320, 9, 3, 3]"),
    "sd15-ip2p": ("sd15-ip2p", "edit", "epsilon", f"{FIRST} [320, 8, 3, 3]"),
    "sd2": ("sd2-v", "text", "v_prediction", SD2_CONTEXT),
    "sd2-inpaint": ("sd2-inpaint", "inpaint", "epsilon", f"{FIRST} [320, 9, 3, 3]"),
    "sd2-depth": ("sd2-depth", "depth", "epsilon", f"{FIRST} [320, 5, 3, 3]"),
    "sd2-unclip-l": ("sd2-unclip-l", "unclip", "v_prediction", f"{VECTOR} [1280, 1536]"),
    "sd2-unclip-h": ("sd2-unclip-h", "unclip", "v_prediction", f"{VECTOR} [1280, 2048]"),
    "sdxl": ("sdxl", "text", "epsilon", XL_CONTEXT),
    "sdxl-inpaint": ("sdxl-inpaint", "inpaint", "epsilon", f"{FIRST} [320, 9, 3, 3]"),
    "sdxl-ip2p": ("sdxl-ip2p", "edit", "epsilon", f"{FIRST} [320, 8, 3, 3]"),
    "sdxl-refiner": ("sdxl-refiner", "refiner", "epsilon", f"{VECTOR} [1536, 2560]"),
    "x4-upscaler": ("x4-upscaler", "upscale", "v_prediction", "model.diffusion_model.label_emb.weight [1000, 1024]"),
}


def header_of(shapes: headers.Shapes, metadata: dict[str, str] | None = None) -> Header:
    """A header without a file, for what is decided by names and shapes alone."""
    tensors = {name: TensorInfo(dtype="F16", shape=shape) for name, shape in shapes.items()}
    return Header(path=Path("model.safetensors"), tensors=tensors, metadata=metadata or {})


def refusal_of(source: Header | Path) -> str:
    """The message of a refusal, which has three lines."""
    with pytest.raises(CheckpointError) as error:
        detect(source)
    message = str(error.value)
    assert message.count("\n") == 2, message
    assert all(line.strip() for line in message.split("\n"))
    return message


def test_the_test_headers_have_the_published_parameter_counts() -> None:
    for preset, (_, count) in headers.UNETS.items():
        assert sum(map(prod, headers.ldm_unet(preset).values())) == count, preset
    assert sum(map(prod, headers.ldm_vae().values())) == 83_653_863
    assert sum(map(prod, headers.openclip("h").values())) == 354_032_640
    assert sum(map(prod, headers.openclip("g").values())) == 694_659_840


@pytest.mark.parametrize("preset", ["sd15", "sdxl", "sdxl-refiner", "x4-upscaler"])
def test_the_test_headers_have_the_names_that_the_reference_reads(preset: str) -> None:
    shapes = headers.ldm_unet(preset)
    state = {f"model.diffusion_model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    convert: Any = vars(single_file_utils)["convert_ldm_unet_checkpoint"]  # without types
    found: dict[str, torch.Tensor] = convert(state, headers.diffusers_unet_config(preset))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == headers.diffusers_unet(preset)


@pytest.mark.parametrize("preset", EXPECTED)
def test_single_file_is_named_and_the_key_that_decides_is_shown(preset: str, tmp_path: Path) -> None:
    path = headers.write(tmp_path / "model.safetensors", headers.checkpoint(preset))
    found = detect(path)
    assert (found.preset, found.variant, found.objective, found.reason.evidence) == EXPECTED[preset]
    assert found.reason.confidence == "certain"
    assert (found.component, found.layout, found.prefix) == ("checkpoint", "ldm", "model.diffusion_model.")
    assert (found.missing, found.has_ema) == ((), False)


@pytest.mark.parametrize("preset", EXPECTED)
def test_unet_alone_in_diffusers_names_is_the_same_model(preset: str) -> None:
    found = detect(header_of(headers.diffusers_unet(preset)))
    assert (found.preset, found.variant) == EXPECTED[preset][:2]
    assert (found.component, found.layout, found.prefix) == ("unet", "diffusers", "")
    assert "load it with" in found.advice


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_unet_alone_in_single_file_names(prefix: str) -> None:
    found = detect(header_of({prefix + name: shape for name, shape in headers.ldm_unet("sdxl").items()}))
    assert (found.component, found.preset, found.prefix) == ("unet", "sdxl", prefix)
    assert found.missing == ("vae", "text", "text_2")


def test_no_two_rules_have_the_same_inputs() -> None:
    inputs = {(rule.in_channels, rule.context, rule.vector, rule.labels) for rule in RULES}
    assert len(inputs) == len(RULES)


def test_ema_missing_parts_and_precision_are_told(tmp_path: Path) -> None:
    shapes = {key: shape for key, shape in headers.checkpoint("sd15", has_ema=True).items() if "first_stage" not in key}
    path = headers.write(tmp_path / "model.safetensors", shapes, {"note": "a\x07b" * 100}, dtype="F32")
    found, header = detect(path), read_header(path)
    assert (found.missing, found.has_ema) == (("vae",), True)
    told: Any = describe(found, header)
    assert told["parts"]["unet"] == {
        "tensors": 686,
        "parameters": 859_520_964,
        "bytes": 4 * 859_520_964,
        "dtypes": {"F32": 686},
    }
    assert told["parts"]["ema"]["parameters"] == 859_520_964
    assert told["metadata"] == {"note": ("a b" * 67)[:200] + "…"}
    assert json.loads(json.dumps(told))["decided_by"]["evidence"] == SD1_CONTEXT
    text = lines(found, header)
    assert text[0] == "Stable Diffusion 1.x (preset sd15, ldm layout)"
    assert SD1_CONTEXT in text[1]
    assert "unet: 859,520,964 parameters, F32" in text
    assert text[-1] == "missing: vae"


# ---- objective


def sd2(metadata: dict[str, str] | None = None, **extra: tuple[int, ...]) -> Header:
    return header_of(headers.ldm_unet("sd2") | extra, metadata)


def answer(found: Detection) -> tuple[str | None, str | None, str]:
    return found.preset, found.objective, found.confidence


def test_metadata_decides_before_everything_else() -> None:
    said = {"modelspec.prediction_type": "epsilon", "global_step": "110000"}
    assert answer(detect(sd2(said, v_pred=(0,)))) == ("sd2", "epsilon", "certain")
    assert answer(detect(sd2({"modelspec.prediction_type": "v"}))) == ("sd2-v", "v_prediction", "certain")
    assert answer(detect(sd2({"modelspec.architecture": "stable-diffusion-v2-512"}))) == ("sd2", "epsilon", "certain")
    xl = header_of(headers.ldm_unet("sdxl"), {"modelspec.prediction_type": "v"})
    assert answer(detect(xl)) == ("sdxl", "v_prediction", "certain")


def test_marker_keys_decide_and_zero_snr_is_told() -> None:
    found = detect(header_of(headers.ldm_unet("sdxl") | {"v_pred": (0,), "ztsnr": (0,)}))
    assert answer(found) == ("sdxl", "v_prediction", "certain")
    assert found.is_zero_snr
    assert found.objective_reason is not None
    assert found.objective_reason.evidence == "v_pred [0]"
    only = detect(header_of(headers.ldm_unet("sdxl") | {"ztsnr": (0,)}))
    assert answer(only) == ("sdxl", "v_prediction", "certain")
    assert not detect(header_of(headers.ldm_unet("sdxl") | {"v_pred": (0,)})).is_zero_snr


@pytest.mark.parametrize("marker", ["edm_mean", "edm_vpred.sigma_max"])
def test_edm_models_are_refused(marker: str) -> None:
    assert "EDM" in refusal_of(header_of(headers.ldm_unet("sdxl") | {marker: (4,)}))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (875_000, ("sd2", "epsilon", "likely")),
        (220_000, ("sd2", "epsilon", "likely")),
        (110_000, ("sd2-v", "v_prediction", "likely")),
        (5, ("sd2-v", "v_prediction", "guess")),
    ],
)
def test_step_counter_decides_for_sd2(step: int, expected: tuple[str, str, str], tmp_path: Path) -> None:
    """As metadata, where the conversion of pickles puts it, and as a tensor, where other converters do."""
    assert answer(detect(sd2({"global_step": str(step)}))) == expected
    small = {key: torch.zeros(1).expand(shape) for key, shape in headers.ldm_unet("sd2").items() if prod(shape) < 1000}
    write_state(tmp_path / "step.safetensors", {"global_step": torch.tensor(step), **small})
    written = read_header(tmp_path / "step.safetensors")
    header = Header(path=written.path, tensors=sd2(global_step=()).tensors)
    assert answer(detect(header)) == expected


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (NORM_BIAS_LIMIT * 0.99, ("sd2", "epsilon", "likely")),
        (NORM_BIAS_LIMIT * 1.01, ("sd2-v", "v_prediction", "likely")),
        (0.0, ("sd2-v", "v_prediction", "guess")),
    ],
)
def test_spread_of_a_norm_bias_decides_for_sd2(
    layout: str, spread: float, expected: tuple[str, str, str], tmp_path: Path
) -> None:
    shapes = headers.ldm_unet("sd2") if layout == "ldm" else headers.diffusers_unet("sd2")
    block = "output_blocks.11.1" if layout == "ldm" else "up_blocks.3.attentions.2"
    key = f"{block}.transformer_blocks.0.norm1.bias"
    assert shapes[key] == (320,)
    bias = torch.tensor([spread, -spread], dtype=torch.float32).repeat(160)  # its standard deviation is `spread`
    write_state(tmp_path / "bias.safetensors", {key: bias})
    found = detect(Header(path=tmp_path / "bias.safetensors", tensors=header_of(shapes).tensors))
    assert answer(found) == expected


def test_objective_of_published_shapes_is_only_likely() -> None:
    found = detect(header_of(headers.ldm_unet("sd15")))
    assert answer(found) == ("sd15", "epsilon", "likely")
    assert found.alternatives == ("v_prediction",)
    assert (found.rule, found.evidence) == (
        "Stable Diffusion 1.x was trained for it",
        "no metadata and no marker says otherwise",
    )


# ---- parts and adapters


PARTS: list[tuple[Callable[[], headers.Shapes], str, str | None, str]] = [
    (headers.ldm_vae, "vae", None, "ldm"),
    (headers.diffusers_vae, "vae", None, "diffusers"),
    (lambda: headers.ldm_vae(3), "vae", "x4-upscaler", "ldm"),
    (headers.clip_l, "text", "sd15", "transformers"),
    (lambda: headers.openclip("h"), "text", "sd2", "openclip"),
    (lambda: headers.openclip("g"), "text", "sdxl", "openclip"),
    (lambda: {"visual.conv1.weight": (1280, 3, 14, 14)}, "image", None, "openclip"),
    (lambda: {"vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14)}, "image", None, "transformers"),
    (lambda: {"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "taesd", None, "other"),
    (lambda: {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768)},
     "lora", "sd15", "other"),
    (lambda: {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (8, 2048)},
     "lora", "sdxl", "other"),
    (lambda: {"lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (768, 4)}, "lora", None, "other"),
    (lambda: {"emb_params": (4, 768)}, "embedding", "sd15", "other"),
    (lambda: {"clip_g": (2, 1280), "clip_l": (2, 768)}, "embedding", "sdxl", "other"),
    (lambda: {"string_to_param.*": (3, 1024)}, "embedding", "sd2", "other"),
    (lambda: {"my style": (768,)}, "embedding", "sd15", "other"),
    (lambda: {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), f"control_model.input_blocks.1.1.{CROSS}":
     (320, 1024)}, "controlnet", "sd2", "other"),
    (lambda: {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3),
     f"down_blocks.1.attentions.0.{CROSS}": (640, 2048)}, "controlnet", "sdxl", "other"),
    (lambda: {"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.weight": (3072, 1024)},
     "ip_adapter", None, "other"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "component", "preset", "layout"), PARTS)
def test_part_or_adapter_is_named_as_what_it_is(
    make: Callable[[], headers.Shapes], component: str, preset: str | None, layout: str
) -> None:
    found = detect(header_of(make()))
    assert (found.component, found.preset, found.layout) == (component, preset, layout)
    assert found.objective is None
    assert found.advice


def test_autoencoders_of_sd_and_sdxl_are_alike() -> None:
    found = detect(header_of(headers.diffusers_vae()))
    assert (found.confidence, found.alternatives) == ("guess", ("sd15", "sd2", "sdxl"))


# ---- folders


def folder(path: Path, preset: str, scheduler: dict[str, Any] | None = None, **change: Any) -> Path:
    """A diffusers folder of full size with the configs that diffusers writes."""
    names = {"text": "text_encoder", "text_2": "text_encoder_2", "image": "image_encoder"}
    rule = next(rule for rule in RULES if rule.preset == preset)
    for role in rule.needs:
        part = path / names.get(role, role)
        if preset == "sdxl-refiner" and role == "text":
            part = path / "text_encoder_2"
        part.mkdir(parents=True)
        stem = "diffusion_pytorch_model" if role in {"unet", "vae"} else "model"
        headers.write(part / f"{stem}.safetensors", {"weight": (1,)})
    (path / "unet" / "config.json").write_text(json.dumps(headers.diffusers_unet_config(preset) | change))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    if scheduler is not None:
        (path / "scheduler").mkdir()
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


@pytest.mark.parametrize("preset", EXPECTED)
def test_folder_is_named_by_its_configs(preset: str, tmp_path: Path) -> None:
    found = detect(folder(tmp_path / "model", preset, {"prediction_type": "v_prediction"}))
    assert (found.preset, found.variant) == EXPECTED[preset][:2]
    assert (found.component, found.layout, found.missing) == ("checkpoint", "diffusers", ())
    assert (found.objective, found.confidence) == ("v_prediction", "certain")


def test_folder_without_prediction_type_is_epsilon(tmp_path: Path) -> None:
    found = detect(folder(tmp_path / "model", "sd2", {"_class_name": "PNDMScheduler"}))
    assert answer(found) == ("sd2", "epsilon", "certain")


def test_folder_tells_zero_snr_and_a_missing_scheduler(tmp_path: Path) -> None:
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert detect(folder(tmp_path / "a", "sd2", config)).is_zero_snr
    found = detect(folder(tmp_path / "b", "sd15"))
    assert (found.objective, found.confidence) == ("epsilon", "guess")


def test_folder_tells_what_is_missing(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "sdxl", {})
    (path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    found = detect(path)
    assert found.missing == ("vae",)
    told: Any = describe(found)
    assert "is missing" in told["parts"]["vae"]["problem"]


@pytest.mark.parametrize(
    ("preset", "change"),
    [
        ("sd15", {"block_out_channels": [96, 192, 288], "cross_attention_dim": 256}),
        ("sd15-inpaint", {"cross_attention_dim": 64}),
        ("sd2-depth", {"cross_attention_dim": 64}),
        ("sd2-unclip-h", {"projection_class_embeddings_input_dim": 64}),
        ("sdxl", {"cross_attention_dim": 96, "projection_class_embeddings_input_dim": 1600}),
        ("sdxl-refiner", {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 1344}),
        ("x4-upscaler", {"num_class_embeds": 20}),
    ],
)
def test_folder_of_another_size_is_known_by_its_structure(preset: str, change: dict[str, Any], tmp_path: Path) -> None:
    found = detect(folder(tmp_path / "model", preset, {"prediction_type": "sample"}, **change))
    family = {"sd2-unclip-h": "sd2-unclip-l"}.get(preset, preset)  # l and h differ in size only
    assert (found.preset, found.objective, found.confidence) == (family, "sample", "likely")


def test_small_trained_folder_and_its_parts(trained_folder: Path) -> None:
    found = detect(trained_folder)
    assert (found.preset, found.variant, found.objective) == ("sd15", "text", "v_prediction")
    assert found.missing == ()
    told: Any = describe(found)
    assert told["parts"]["unet"]["parameters"] == 19_539_796
    assert detect(trained_folder / "unet").component == "unet"
    assert detect(trained_folder / "vae").title == "autoencoder with latents 4 times smaller"
    assert detect(trained_folder / "text_encoder").title == "text encoder 256 wide"


def test_unet_folder_of_a_model_takes_objective_from_the_scheduler_beside_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "sd2", {"prediction_type": "v_prediction"})
    found = detect(path / "unet")
    assert answer(found) == ("sd2-v", "v_prediction", "certain")
    assert (found.component, found.missing) == ("unet", ("vae", "text"))
    told: Any = describe(found)
    assert told["parts"]["unet"]["parameters"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"down_block_types": ["SimpleCrossAttnDownBlock2D"]}, "SimpleCrossAttnDownBlock2D"),
        ({"transformer_layers_per_block": [0, [2, 2], [4, 4]]}, "layers taken out"),
        ({"encoder_hid_dim_type": "image_proj"}, "another family"),
        ({"in_channels": 12}, "in_channels 12"),
    ],
)
def test_folder_of_another_kind_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal_of(folder(tmp_path / "model", "sdxl", {}, **change))


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    assert "contains nothing" in refusal_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "config without weights" in refusal_of(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "FluxPipeline" in refusal_of(tmp_path)
    wrong = folder(tmp_path / "model", "sd15", {"_class_name": "EDMEulerScheduler", "prediction_type": "flow"})
    assert "'flow'" in refusal_of(wrong)


# ---- refused


def test_distilled_models_are_refused_by_name() -> None:
    """SSD-1B: 2, 2, 4, 4 layers on the way down, 4, 4, 10, 2, 1, 1 up and none in the middle."""
    full = headers.ldm_unet("sdxl")
    keep = {"input_blocks.4": 2, "input_blocks.5": 2, "input_blocks.7": 4, "input_blocks.8": 4, "middle_block.1": 0}
    keep |= {"output_blocks.0": 4, "output_blocks.1": 4, "output_blocks.2": 10}
    keep |= {"output_blocks.3": 2, "output_blocks.4": 1, "output_blocks.5": 1}

    def is_kept(name: str) -> bool:
        place, _, rest = name.partition(".transformer_blocks.")
        limit = next((count for start, count in keep.items() if place.startswith(f"{start}.") or place == start), 99)
        return not rest or int(rest.partition(".")[0]) < limit

    message = refusal_of(header_of({name: shape for name, shape in full.items() if is_kept(name)}))
    assert message.startswith("not supported: SSD-1B, a smaller copy of Stable Diffusion XL")
    assert "34 of 70 transformer layers" in message


def test_model_with_a_piece_missing_is_not_taken_for_whole() -> None:
    shapes = {key: shape for key, shape in headers.ldm_unet("sd15").items() if not key.startswith("output_blocks.11.")}
    assert "15 of 16 transformer layers and 21 of 22 residual blocks" in refusal_of(header_of(shapes))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "Stable Diffusion 3"),
        ("single_transformer_blocks.0.attn.to_q.weight", "Flux"),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.ff.net.2.weight", "a video model"),
        ("cond_stage_model.transformer.token_emb.weight", "latent diffusion before Stable Diffusion"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder"),
    ],
)
def test_other_families_are_refused_by_name(key: str, name: str) -> None:
    message = refusal_of(header_of({"some.weight": (4,), key: (64, 64)}))
    assert message.startswith(f"not supported: model.safetensors is {name}\n")
    assert key in message


def test_unet_of_unknown_shape_names_the_nearest() -> None:
    shapes = headers.ldm_unet("sd15") | {"input_blocks.0.0.weight": (320, 12, 3, 3)}
    message = refusal_of(header_of(shapes))
    assert "nearest is Stable Diffusion 1" in message
    assert "in_channels is 12" in message
    assert "input_blocks.0.0.weight [320, 12, 3, 3]" in message


def test_hostile_shapes_are_refused_not_tripped_over() -> None:
    shapes: headers.Shapes = {"input_blocks.0.0.weight": (320, 4, 3, 3), f"x.{CROSS}": (), "label_emb.weight": (1,)}
    assert "U-Net of no known model" in refusal_of(header_of(shapes))
    assert "none" in refusal_of(header_of({}))
    assert "not a model that is known" in refusal_of(header_of({"x": ()}))
    assert find_unet(header_of({"conv_in.weight": (1,), f"y.{CROSS}": (1, 1)}).tensors) is None


def _damaged() -> dict[str, bytes]:
    whole = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    good = len(whole).to_bytes(8, "little") + whole + bytes(8)
    cuts = {f"cut at {at}": good[:at] for at in (0, 1, 7, 8, 9, 20, len(good) - 9, len(good) - 1)}
    return cuts | {
        "text": b"these are not weights, just words\n" * 10,
        "web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "huge header": (1 << 40).to_bytes(8, "little") + b"{" + bytes(100),
        "random": bytes(i * 167 % 251 for i in range(4000)),
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": b"\x80\x02}q\x00." + bytes(40),
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "not json": (10).to_bytes(8, "little") + b"{broken..}",
    }


@pytest.mark.parametrize("kind", _damaged())
def test_damaged_file_gets_three_lines(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(_damaged()[kind])
    message = refusal_of(path)
    assert message.startswith("model.safetensors cannot be read as a model")
    assert str(path) in message


def test_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal_of(tmp_path / "none.safetensors")
