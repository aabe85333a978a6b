"""`huggingface_hub.InferenceClient` against the real server with the packaged model."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from mezzotint.images import read_metadata
from serve.conftest import Served


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """The client refuses to speak even to this machine otherwise."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_text_to_image(served: Served) -> None:
    client = InferenceClient(model=f"{served.address}/hf/text-to-image")
    fields: dict[str, Any] = {  # Any: each has its own type
        "negative_prompt": "blurry",
        "width": 64,
        "height": 48,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
    }
    one = client.text_to_image("a red fox", seed=5, **fields)
    assert one.size == (64, 48)
    other = client.text_to_image("a red fox", seed=5, **fields)
    assert (np.asarray(one) == np.asarray(other)).all()
    assert (np.asarray(client.text_to_image("a red fox", seed=6, **fields)) != np.asarray(one)).any()


def test_image_to_image(served: Served) -> None:
    client = InferenceClient(model=f"{served.address}/hf/image-to-image")

    def made(picture: Image.Image) -> Image.Image:
        data = io.BytesIO()
        picture.resize((64, 48)).convert("RGB").save(data, "PNG")
        fields: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0, "seed": 5}  # Any: as above
        return client.image_to_image(data.getvalue(), prompt="a fox", **fields)  # pyright: ignore[reportUnknownMemberType]  # loosely typed

    gradient = Image.linear_gradient("L")
    one, other = made(gradient), made(gradient.rotate(90))
    assert one.size == other.size == (64, 48)
    assert (np.asarray(made(gradient)) == np.asarray(one)).all()
    assert (np.asarray(other) != np.asarray(one)).any()


def test_wrong_requests_are_errors_with_words(served: Served) -> None:
    client = InferenceClient(model=f"{served.address}/hf/text-to-image")
    with pytest.raises(HfHubHTTPError, match="width 65: must be a multiple of 8"):
        client.text_to_image("x", width=65)


def test_the_picture_carries_its_recipe(client: httpx.Client) -> None:
    body = {"inputs": "a fox", "parameters": {"num_inference_steps": 1, "seed": 9}, "options": {"wait_for_model": True}}
    answer = client.post("/hf/text-to-image", json=body, headers={"accept": "image/webp"})
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-seed"] == "9"
    record = read_metadata(answer.content).record
    assert record is not None
    assert record["resolved"]["request"]["seed"] == 9
    wrong = client.post("/hf/text-to-image", json={"inputs": "x", "parameters": {"scheduler": "eular"}})
    assert wrong.json()["error"].startswith("unknown sampler 'eular'; did you mean 'euler'?")
