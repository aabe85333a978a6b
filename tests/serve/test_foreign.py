"""What other programs' pictures say, as fields of a request; and what no file can make of it."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint.errors import RequestError
from mezzotint.images import encode
from mezzotint.serve.foreign import explained
from mezzotint.serve.wish import Wish


def png(**texts: str) -> bytes:
    chunks, out = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (16, 8)).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


WRONG: list[dict[str, Any]] = [  # Any: JSON
    {"resolved": []},
    {"resolved": None},
    {"resolved": {"request": "a red fox"}},
    {"resolved": {"request": {"steps": 3}}, "model": "v1-5"},
    {"model": {"unet": ["v1-5"]}},
    {"execution": 1},
]
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7,
            "steps": 25,
            "cfg": 6.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}
INVOKE = {
    "positive_prompt": "a red fox",
    "negative_prompt": "blurry",
    "width": 512,
    "height": 768,
    "seed": 7,
    "cfg_scale": 6.5,
    "steps": 25,
    "scheduler": "euler_a",
    "model": {"model_name": "v1-5"},
    "app_version": "3",
}
FOOOCUS = {
    "prompt": "a red fox",
    "negative_prompt": "blurry",
    "steps": 25,
    "guidance_scale": 6.5,
    "seed": 7,
    "base_model": "v1-5",
    "base_model_hash": "0",
    "sampler": "euler_ancestral",
    "scheduler": "karras",
    "sharpness": 2,
    "version": "Fooocus v2",
    "metadata_scheme": "fooocus",
}
SWARM = {
    "sui_image_params": {
        "prompt": "a red fox",
        "negativeprompt": "blurry",
        "steps": "25",
        "cfgscale": "6.5",
        "seed": "7",
        "width": "512",
        "height": "768",
        "sampler": "euler_ancestral",
        "model": "v1-5",
    }
}
A1111 = (
    "a red fox\nNegative prompt: blurry\n"
    "Steps: 25, Sampler: Euler a, CFG scale: 6.5, Seed: 7, Size: 512x768, Model: v1-5"
)
FILES = {
    "comfyui": png(prompt=json.dumps(COMFY), workflow=json.dumps({"nodes": []})),
    "invokeai": png(invokeai_metadata=json.dumps(INVOKE)),
    "fooocus": png(parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus"),
    "swarmui": png(parameters=json.dumps(SWARM)),
    "a1111": png(parameters=A1111),
}


@pytest.mark.parametrize("source", FILES)
def test_a_picture_of_another_program_becomes_a_request(source: str):
    told = explained(FILES[source])
    assert told.source == source, told
    assert told.request is not None
    request = told.request
    assert (request["prompt"], request["negative"]) == ("a red fox", "blurry")
    assert (request["steps"], request["seed"], request["guidance"]) == (25, 7, 6.5)
    assert request["sampler"] == ("dpmpp_2m" if source == "comfyui" else "euler_ancestral")
    Wish.model_validate(request)


def test_a_graph_without_a_workflow_beside_it_and_graphs_that_are_none():
    told = explained(png(prompt=json.dumps(COMFY)))
    assert (told.source, told.model) == ("comfyui", "v1-5.safetensors")
    assert told.request is not None
    assert (told.request["width"], told.request["height"]) == (512, 768)
    loop = {"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"x": ["2", 0]}}}
    graphs: list[Any] = [
        loop,
        {"1": {"class_type": "Other"}},
        {"1": []},
        [{"class_type": 1}],
        {"1": {"class_type": None}},
    ]
    for graph in graphs:
        explained(png(prompt=json.dumps(graph)))


def test_the_same_text_in_other_formats():
    image = Image.new("RGB", (16, 8))
    for kind in ("JPEG", "WEBP"):
        told = explained(encode(image, A1111, None, kind))
        assert (told.source, told.model, told.infotext) == ("a1111", "v1-5", A1111)


def test_what_is_unknown_or_out_of_range_is_left_out_and_said():
    text = "x\nSteps: 99999, Sampler: Magic, CFG scale: 1e9, Seed: -3, Size: 1x1, Hires upscale: 2, Clip skip: 2"
    told = explained(png(parameters=text))
    assert told.request == {"prompt": "x", "width": 8, "height": 8, "clip_skip": 2}
    said = " ".join(told.warnings)
    assert "the sampler 'Magic' is unknown here" in said
    assert "steps: '99999' is out of range here" in said
    assert "Hires upscale: 2" in told.ignored


def test_a_picture_that_says_nothing_and_a_file_that_is_none():
    assert explained(png()).request is None
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>"):
        with pytest.raises(RequestError, match="not a PNG, JPEG or WebP picture"):
            explained(data)


@pytest.mark.parametrize(
    "text",
    [
        *(json.dumps({"schema": 1, **wrong}) for wrong in WRONG),
        '{"schema": ' + '{"a": ' * 50_000 + "1" + "}" * 50_001,
    ],
    ids=lambda text: text[:50],
)
def test_a_record_with_something_else_where_objects_belong_is_none_of_ours(text: str):
    told = explained(png(mezzotint=text))
    assert (told.record, told.request, told.source) == (None, None, None)
    whole = {"schema": 1, "resolved": {"request": {"steps": 3}}, "model": {"unet": {"name": "x"}}, "execution": {}}
    assert explained(png(mezzotint=json.dumps(whole))).request == {"steps": 3}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata", "Comment", "mezzotint"]),
    JSON | st.sampled_from([COMFY, INVOKE, FOOOCUS, SWARM]),
    st.sampled_from(["", "sui_image_params", "schema", "resolved"]),
)
def test_no_text_makes_it_fail_or_say_what_is_no_request(key: str, value: Any, wrap: str):
    text = json.dumps({wrap: value} if wrap else value)
    try:
        told = explained(png(**{key: text}))
    except RequestError:
        return  # a schema of a later version
    if told.source != "mezzotint" and told.request is not None:
        Wish.model_validate(told.request)
