"""webuiapi against the real server with the packaged model: its whole scenario."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi  # pyright: ignore[reportMissingTypeStubs]  # it has none
from PIL import Image

from mezzotint.images import read_infotext
from serve.conftest import Served, Sleepers, until_true

Api = Any  # untyped


@pytest.fixture
def api(served: Served) -> Api:
    return webuiapi.WebUIApi(port=served.port, sampler="Euler a", steps=2)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]  # untyped


SMALL: dict[str, int] = {"width": 64, "height": 64}


def pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]]:  # Any: numpy's shape parameter
    return np.asarray(image.convert("RGB")).astype(np.int16)


def asked(served: Served, **fields: Any) -> tuple[threading.Thread, list[Any]]:  # Any: theirs
    """Ask for a long job in a thread; the thread, and where its answer comes."""
    found: list[Any] = []  # Any: theirs

    def ask() -> None:
        other: Api = webuiapi.WebUIApi(port=served.port)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]  # untyped
        found.append(other.txt2img(prompt="long", seed=1, **fields, **SMALL))

    task = threading.Thread(target=ask)
    task.start()
    return task, found


def test_txt2img(api: Api) -> None:
    made = api.txt2img(
        prompt="a red fox", negative_prompt="blurry", seed=3, batch_size=2, n_iter=1, cfg_scale=4, **SMALL
    )
    assert [image.size for image in made.images] == [(64, 64)] * 2
    assert made.info["all_seeds"] == [3, 4]
    assert made.info["sampler_name"] == "Euler a"
    assert made.parameters["prompt"] == "a red fox"
    text = read_infotext(made.info["infotexts"][1])
    assert (text.prompt, text.negative, text.items["Seed"], text.items["CFG scale"]) == (
        "a red fox",
        "blurry",
        "4",
        "4",
    )
    assert made.images[1].info["parameters"] == made.info["infotexts"][1]
    again = api.txt2img(prompt="a red fox", negative_prompt="blurry", seed=4, cfg_scale=4, **SMALL)
    assert (pixels(again.image) == pixels(made.images[1])).all()


def test_what_cannot_be_done_is_listed(api: Api) -> None:
    made = api.txt2img(prompt="x", enable_hr=True, restore_faces=True, seed=1, scheduler="no such", **SMALL)
    told = " ".join(made.json["warnings"])
    assert "enable_hr: not done here" in told
    assert "restore_faces: not done here" in told
    assert "scheduler 'no such'" in told


def test_names_of_samplers_and_schedulers_are_the_web_uis(api: Api) -> None:
    names = api.util_get_sampler_names()
    assert {"Euler a", "DPM++ 2M", "DPM++ SDE", "UniPC", "DDIM"} <= set(names)
    assert {"automatic", "karras", "exponential"} <= set(api.util_get_scheduler_names())
    made = api.txt2img(prompt="x", sampler_name="DPM++ 2M Karras", seed=1, **SMALL)
    assert read_infotext(made.info["infotexts"][0]).items["Schedule type"] == "karras"
    with pytest.raises(RuntimeError, match="Sampler not found"):
        api.txt2img(prompt="x", sampler_name="No Such", **SMALL)


def test_img2img_and_inpainting(api: Api) -> None:
    photo = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    made = api.img2img(images=[photo], prompt="a fox", denoising_strength=0.5, seed=1, **SMALL)
    assert made.image.size == (64, 64)
    assert made.info["denoising_strength"] == 0.5
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 24, 64))
    fields: dict[str, Any] = {"prompt": "a fox", "mask_blur": 4, "denoising_strength": 1, "seed": 1}  # Any: theirs
    inside = api.img2img(images=[photo], mask_image=mask, **fields, **SMALL)
    assert (pixels(inside.image)[:, 40:] == pixels(photo)[:, 40:]).all()
    assert (pixels(inside.image)[:, :16] != pixels(photo)[:, :16]).any()
    outside = api.img2img(images=[photo], mask_image=mask, inpainting_mask_invert=1, **fields, **SMALL)
    assert (pixels(outside.image)[:, :12] == pixels(photo)[:, :12]).all()
    assert any("inpaint_full_res" in warning for warning in inside.json["warnings"])


def test_png_info_reads_ours_and_others(api: Api, golden: Path) -> None:
    made = api.txt2img(prompt="a red fox", seed=3, **SMALL)
    assert api.png_info(made.image).info == made.info["infotexts"][0]
    with Image.open(golden / "a1111.png") as image:
        image.load()
        told = api.png_info(image)
    assert (told.parameters["Sampler"], told.parameters["Steps"]) == ("UniPC", "15")
    assert "Negative prompt" in told.info
    assert api.png_info(Image.new("RGB", (8, 8))).info == ""


def test_progress_and_interrupt(api: Api, served: Served) -> None:
    task, found = asked(served, steps=400, batch_size=3)
    until_true(lambda: api.get_progress()["state"]["sampling_step"] > 3, "steps are made")
    now = api.get_progress()
    assert 0 < now["progress"] < 0.4
    assert now["state"]["sampling_steps"] == 400
    assert now["state"]["job_count"] == 3
    assert now["current_image"]
    started = time.monotonic()
    api.interrupt()
    task.join(30)
    assert not task.is_alive()
    assert time.monotonic() - started < 5
    assert found[0].images == []
    assert api.get_progress()["progress"] == 0
    api.util_wait_for_ready(check_interval=0.05)


def test_skip_leaves_one_picture_out(api: Api, served: Served) -> None:
    task, found = asked(served, steps=60, batch_size=2)
    until_true(lambda: api.get_progress()["state"]["sampling_step"] > 1, "steps are made")
    api.skip()
    task.join(60)
    assert found[0].info["all_seeds"] in ([2], [1])


def test_options_models_and_everything_that_clients_ask_for(api: Api, client: httpx.Client) -> None:
    options = api.get_options()
    assert options["sd_model_checkpoint"] == api.util_get_current_model() == "icons"
    api.set_options(options)  # as Open WebUI does: all of it, unchanged
    assert {"icons", "model", "unclip"} <= set(api.util_get_model_names())
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nothing"}).status_code == 422
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["total"] > 0
    assert "Lanczos" in [one["name"] for one in api.get_upscalers()]
    for name in ("sd_vae", "loras", "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles"):
        assert getattr(api, f"get_{name}")() == []
    assert api.get_latent_upscale_modes() == []
    assert api.get_cmd_flags() == {}
    api.refresh_checkpoints()
    assert client.get("/internal/pending-tasks").json() == {"size": 0, "tasks": []}
    assert client.post("/internal/progress", json={}).json()["completed"] is True
    assert client.post("/sdapi/v1/interrogate", json={"image": ""}).status_code == 422


def test_options_answer_when_the_model_is_loaded_and_what_comes_then_gets_it(sleeper: Sleepers) -> None:
    """Also behind jobs that wait for the model before, which they get; a switch that fails is no success."""
    sleeping = sleeper(service=0.2, places=1)
    with httpx.Client(base_url=sleeping.address, timeout=60) as client:

        def current() -> str:
            return client.get("/sdapi/v1/options").json()["sd_model_checkpoint"]

        def switched(name: str) -> httpx.Response:
            return client.post("/sdapi/v1/options", json={"sd_model_checkpoint": name})

        job = {"request": {"prompt": "a", "guidance": 1, "count": 3}}
        before = [client.post("/api/v1/jobs", json=job).json()["id"] for _ in range(2)]
        assert switched("two").status_code == 200
        assert [client.get(f"/api/v1/jobs/{name}").json()["state"] for name in before] == ["done", "done"]
        assert client.get("/api/v1/server").json()["model"]["name"] == current() == "two"
        made = client.post("/sdapi/v1/txt2img", json={"steps": 5, **SMALL}).json()
        assert json.loads(made["info"])["sd_model_name"] == "two"
        client.post("/api/v1/jobs", json=job)
        refused = switched("broken")
        assert refused.status_code == 422
        assert "'broken' cannot be loaded, as the server's log says" in refused.json()["detail"]
        assert "the model is 'one'" in refused.json()["detail"]
        assert current() == "one"
        assert switched("one").status_code == 200  # which is under way
        assert client.get("/api/v1/server").json()["model"]["name"] == "one"


def test_extras_resize(api: Api) -> None:
    photo = Image.new("RGB", (20, 10), "red")
    assert api.extra_single_image(photo, upscaling_resize=3, upscaler_1="Lanczos").image.size == (60, 30)
    to = {"resize_mode": 1, "upscaling_resize_w": 16, "upscaling_resize_h": 16}
    assert api.extra_single_image(photo, **to).image.size == (16, 16)
    both = api.extra_batch_images([photo, photo], upscaling_resize=2)
    assert [image.size for image in both.images] == [(40, 20)] * 2


def test_addresses_are_never_fetched(client: httpx.Client) -> None:
    body = {"prompt": "x", "init_images": ["http://127.0.0.1:1/x.png"], **SMALL}
    answer = client.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 400
    assert "addresses are not fetched" in answer.json()["detail"]


def test_basic_auth_is_the_key(sleeper: Sleepers) -> None:
    sleeping = sleeper(key="right")
    port = int(sleeping.address.rpartition(":")[2])
    api: Api = webuiapi.WebUIApi(port=port, username="any", password="right")  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]  # untyped
    assert api.get_samplers()
    refused = httpx.get(f"{sleeping.address}/sdapi/v1/samplers", auth=("any", "wrong"))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")
    assert json.loads(refused.text)["error"] == "key_needed"


def test_changing_the_model_waits_until_it_is_loaded(sleeper: Sleepers) -> None:
    sleeping = sleeper()
    port = int(sleeping.address.rpartition(":")[2])
    api: Api = webuiapi.WebUIApi(port=port)  # pyright: ignore[reportUnknownMemberType, reportPrivateImportUsage]  # untyped
    api.util_set_model("two")
    assert api.util_get_current_model() == "two"
    assert sleeping.hub.state == "ready"
    made = api.txt2img(prompt="x", seed=7, override_settings={"sd_model_checkpoint": "one"}, **SMALL)
    assert made.info["sd_model_name"] == "one"
    assert api.util_get_current_model() == "two"
