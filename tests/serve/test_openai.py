"""OpenAI's own client against the real server with the packaged model: its whole scenario."""

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from mezzotint.images import open_image, read_metadata, source_type
from serve.conftest import Served, Sleepers


@pytest.fixture
def api(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as api:
        yield api


def picture(b64: str | None) -> Image.Image:
    return open_image(base64.b64decode(b64 or ""))


def file(image: Image.Image, name: str = "image.png") -> tuple[str, io.BytesIO, str]:
    data = io.BytesIO()
    image.save(data, "PNG")
    data.seek(0)
    return name, data, "image/png"


def photo(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((64, 48)).convert(mode)


def test_generate(api: openai.OpenAI) -> None:
    made = api.images.generate(
        prompt="a red fox", n=2, size="64x48", extra_body={"seed": 5, "steps": 2, "guidance_scale": 3, "colour": 1}
    )
    assert made.data is not None
    assert [picture(one.b64_json).size for one in made.data] == [(64, 48)] * 2
    assert [(one.model_extra or {})["seed"] for one in made.data] == [5, 6]
    assert (made.model_extra or {})["warnings"] == ["colour: ignored"]
    record = read_metadata(base64.b64decode(made.data[1].b64_json or "")).record
    assert record is not None
    assert record["resolved"]["request"]["guidance"] == 3
    assert record["resolved"]["request"]["seed"] == 6


def test_the_picture_is_of_what_was_asked_for(api: openai.OpenAI) -> None:
    """Of all scenarios the one that only a trained model passes: the words decide the colour."""
    tints: dict[str, float] = {}
    for colour in ("red", "blue"):
        made = api.images.generate(prompt=f"a {colour} heart, noto emoji", extra_body={"seed": 1, "steps": 6})
        assert made.data is not None
        red, _, blue = np.asarray(picture(made.data[0].b64_json)).reshape(-1, 3).mean(0)
        tints[colour] = red - blue
    assert tints["red"] > 30
    assert tints["blue"] < -30


def test_the_same_seed_gives_the_same_bytes(api: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"prompt": "a fox", "size": "64x64", "extra_body": {"seed": 1, "steps": 2}}  # Any: theirs
    made: list[Any] = [api.images.generate(**fields) for _ in range(2)]  # Any: overloads of theirs
    assert made[0].data[0].b64_json == made[1].data[0].b64_json


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_carry_texts_and_mark(api: openai.OpenAI, kind: Any) -> None:  # Any: a literal of theirs
    made = api.images.generate(
        prompt="a fox", output_format=kind, output_compression=80, extra_body={"steps": 1, "seed": 1}
    )
    assert made.data is not None
    data = base64.b64decode(made.data[0].b64_json or "")
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == kind.upper()
    found = read_metadata(data)
    assert found.record is not None
    assert found.infotext is not None
    assert found.infotext.prompt == "a fox"
    assert source_type(data) == "trainedAlgorithmicMedia"


def test_urls_lead_to_the_picture_for_a_while(api: openai.OpenAI, client: httpx.Client) -> None:
    made = api.images.generate(prompt="a fox", response_format="url", extra_body={"steps": 1})
    assert made.data is not None
    answer = client.get(made.data[0].url or "")
    assert answer.status_code == 200
    assert open_image(answer.content).size == (64, 64)
    assert client.get("/v1/files/p_00000000000000000000000000.png").status_code == 404


def test_edit_with_a_mask_changes_only_where_it_is_transparent(api: openai.OpenAI) -> None:
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[8:40, 8:32] = 0
    mask = photo("RGBA")
    mask.putalpha(Image.fromarray(alpha))
    made = api.images.edit(
        image=file(photo()), mask=file(mask), prompt="a fox", n=1, extra_body={"seed": "7", "steps": "3"}
    )
    assert made.data is not None
    after, before = np.asarray(picture(made.data[0].b64_json)), np.asarray(photo())
    assert after.shape == before.shape
    far = np.ones((48, 64), bool)
    far[0:48, 0:48] = False  # beyond the feathered edge
    assert (after[far] == before[far]).all()
    assert (after[16:32, 16:24] != before[16:32, 16:24]).any()


def test_edit_of_a_list_of_pictures_and_by_the_alpha_of_the_picture_itself(api: openai.OpenAI) -> None:
    clear = photo("RGBA")
    clear.putalpha(0)
    made = api.images.edit(image=[file(clear), file(photo())], prompt="x", extra_body={"steps": 1, "seed": 1})
    assert made.data is not None
    assert "image: only the first of 2 files is used" in (made.model_extra or {})["warnings"]
    record = read_metadata(base64.b64decode(made.data[0].b64_json or "")).record
    assert record is not None
    assert record["resolved"]["request"]["mask"]


def test_variations_resemble_a_picture(api: openai.OpenAI) -> None:
    with pytest.deprecated_call():
        made = api.images.create_variation(  # pyright: ignore[reportDeprecated]  # but clients use it
            image=file(photo()), n=2, extra_body={"steps": "2", "seed": "3"}
        )
    assert made.data is not None
    assert len(made.data) == 2
    assert "was varied, strength 0.7" in (made.model_extra or {})["warnings"][0]


def test_stream_with_partial_pictures(api: openai.OpenAI) -> None:
    stream: Any = api.images.generate(  # Any: overloads of theirs
        prompt="a fox", stream=True, partial_images=2, size="64x64", extra_body={"steps": 6, "seed": 1}
    )
    seen = list(stream)
    assert [event.type for event in seen] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in seen[:2]] == [0, 1]
    pictures = [np.asarray(picture(event.b64_json)).astype(int) for event in seen]
    assert {one.shape for one in pictures} == {(64, 64, 3)}
    distances = [np.abs(one - pictures[-1]).mean() for one in pictures[:2]]
    assert distances[0] > distances[1] > 0
    solo = api.images.generate(prompt="a fox", size="64x64", extra_body={"steps": 6, "seed": 1})
    assert solo.data is not None
    assert solo.data[0].b64_json == seen[-1].b64_json


def test_models(api: openai.OpenAI) -> None:
    names = [model.id for model in api.models.list().data]
    assert names[0] == "icons"
    assert {"model", "unclip"} <= set(names)
    assert api.models.retrieve("icons").owned_by == "mezzotint"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("nothing")


REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [  # Any: theirs
    ({"model": "nothing"}, openai.NotFoundError, "the model 'nothing' does not exist; one of: icons"),
    ({"size": "65x64"}, openai.BadRequestError, "width 65: must be a multiple of 8"),
    ({"size": "64000x64"}, openai.BadRequestError, "width"),
    ({"size": "huge"}, openai.BadRequestError, "size"),
    ({"n": 11}, openai.BadRequestError, "n: must be less than or equal to 10"),
    ({"background": "transparent"}, openai.BadRequestError, "opaque"),
    ({"extra_body": {"sampler": "eular"}}, openai.BadRequestError, "did you mean 'euler'?"),
    ({"extra_body": {"seed": 10**400}}, openai.BadRequestError, "seed"),
]


@pytest.mark.parametrize(("fields", "kind", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_requests_arrive_as_the_errors_that_the_client_knows(
    api: openai.OpenAI,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    words: str,  # Any: theirs
) -> None:
    with pytest.raises(kind) as caught:
        api.images.generate(prompt="x", **fields)
    assert words in str(caught.value.body)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


@pytest.mark.parametrize("model", ["dall-e-3", "gpt-image-1", "icons"])
def test_names_that_clients_offer_by_themselves_mean_the_default_model(api: openai.OpenAI, model: str) -> None:
    made = api.images.generate(prompt="x", model=model, size="64x64", quality="low", extra_body={"steps": 1})
    assert made.data


def test_a_mask_without_alpha_is_refused_in_words(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no alpha channel"):
        api.images.edit(image=file(photo()), mask=file(photo()), prompt="x")
    with pytest.raises(openai.BadRequestError, match="not a PNG, JPEG or WebP"):
        api.images.edit(image=("x.png", io.BytesIO(b"\x80\x04."), "image/png"), prompt="x")


def test_parameters_that_are_pasted_behind_a_prompt_are_read(api: openai.OpenAI) -> None:
    prompt = "a fox\nNegative prompt: blurry\nSteps: 2, Sampler: Euler a, CFG scale: 4, Seed: 9, Size: 64x48"
    made = api.images.generate(prompt=prompt)
    assert made.data is not None
    record = read_metadata(base64.b64decode(made.data[0].b64_json or "")).record
    assert record is not None
    request = record["resolved"]["request"]
    assert (request["prompt"], request["negative"], request["seed"]) == ("a fox", "blurry", 9)
    assert (request["sampler"], request["steps"], request["height"]) == ("euler_ancestral", 2, 48)


def test_a_full_queue_is_a_rate_limit_that_the_client_waits_out(sleeper: Sleepers) -> None:
    sleeping = sleeper(service=1.0, queue=1)
    with openai.OpenAI(base_url=f"{sleeping.address}/v1", api_key="x", max_retries=0) as api, httpx.Client() as other:
        running = other.post(f"{sleeping.address}/api/v1/jobs", json={"request": {"prompt": "x", "guidance": 1}})
        assert running.status_code == 202
        with pytest.raises(openai.RateLimitError) as caught:
            api.images.generate(prompt="x")
        assert caught.value.code == "queue_full"
        counted = 'requests_total{dialect="openai",status="refused"} 1.0'
        assert counted in other.get(f"{sleeping.address}/metrics").text
        assert int(caught.value.response.headers["retry-after"]) >= 1
        started = time.monotonic()
        assert api.with_options(max_retries=2).images.generate(prompt="x").data
        assert time.monotonic() - started >= 1, "it waited as long as it was told"


def test_a_server_with_a_key_wants_it(sleeper: Sleepers) -> None:
    sleeping = sleeper(key="right")
    with openai.OpenAI(base_url=f"{sleeping.address}/v1", api_key="wrong", max_retries=0) as api:
        with pytest.raises(openai.AuthenticationError):
            api.models.list()
        assert api.with_options(api_key="right").models.list().data
