"""The native API as the page uses it."""

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from mezzotint.explain.blocks import without_times
from mezzotint.explain.story import explain
from mezzotint.images import encode, open_image, read_metadata
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.source import Source
from mezzotint.pipeline.system import System
from serve.conftest import Served, Sleepers, events, finished, made, until_true

PHOTO = encode(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))


def test_a_job_from_queue_to_picture(client: httpx.Client, plain: System) -> None:
    answer = client.post("/api/v1/jobs", json={"request": {"prompt": "a red fox", "steps": 3, "seed": 1, "count": 2}})
    assert answer.status_code == 202
    job = answer.json()
    assert job["total"] == 2
    seen = events(client, job["id"])
    kinds = [kind for _, kind, _ in seen]
    assert kinds[-1] == "done"
    assert kinds.count("image") == 2
    assert {"started", "image", "done"} <= set(kinds)
    images = [data for _, kind, data in seen if kind == "image"]
    assert [(one["image"], one["number"], one["seed"]) for one in images] == [(0, 0, 1), (1, 1, 2)]
    solo = generate(plain, Request(prompt="a red fox", steps=3, seed=1, count=2))
    for i, one in enumerate(images):
        file = client.get(one["url"])
        assert file.headers["content-type"] == "image/png"
        assert file.content == solo.png(i), "the bytes of the same request in another process"
        assert client.get(one["url"], headers={"if-none-match": file.headers["etag"]}).status_code == 304
        assert client.get(one["thumb"]).headers["content-type"] == "image/webp"
    assert finished(client, job["id"])["images"] == images
    assert job["id"] in [one["id"] for one in client.get("/api/v1/jobs").json()["jobs"]]


def test_a_job_that_is_explained_gives_the_same_picture_and_its_story(client: httpx.Client, plain: System) -> None:
    wish: dict[str, Any] = {"prompt": "a red fox", "steps": 3, "seed": 1}  # Any: any field
    answer = client.post("/api/v1/jobs", json={"request": wish, "explain": True})
    assert answer.status_code == 202, answer.text
    job = finished(client, answer.json()["id"])
    assert job["state"] == "done", job["error"]
    assert client.get(job["images"][0]["url"]).content == generate(plain, Request(**wish)).png(0)
    seen = events(client, job["id"])
    assert [kind for _, kind, _ in seen] == ["started", "image", "story", "done"]
    assert job["story"] == next(data for _, kind, data in seen if kind == "story")
    told = client.get(job["story"]["url"])
    assert len(told.content) == job["story"]["bytes"]
    assert _comparable(told.json()) == _comparable(explain(plain, Request(**wish)).to_json())
    page = client.get(job["story"]["url"], params={"page": True})
    assert page.headers["content-disposition"] == f'attachment; filename="{job["id"]}.html"'
    assert page.text.startswith("<!doctype html>")
    assert "a red fox" in page.text


def _comparable(story: Any) -> Any:  # Any: JSON
    """What is the same in every run: all but the times, which the last section holds."""
    told = json.loads(json.dumps(without_times(story)))
    return told | {"sections": told["sections"][:-1]}


def test_a_story_is_of_one_picture_and_others_have_none(client: httpx.Client) -> None:
    bodies: list[dict[str, Any]] = [{"request": {"count": 2}}, {"requests": [{}, {}]}]  # Any: JSON
    for body in bodies:
        refused = client.post("/api/v1/jobs", json={**body, "explain": True})
        assert refused.status_code == 400
        assert "one picture is explained at a time" in refused.json()["detail"]
    job = made(client, prompt="x", steps=1, seed=1)
    assert job["story"] is None
    assert client.get(f"/api/v1/jobs/{job['id']}/story").status_code == 404


def test_a_story_can_be_cancelled_while_it_is_told(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 200, "seed": 1}, "explain": True})
    name = answer.json()["id"]
    until_true(lambda: client.get(f"/api/v1/jobs/{name}").json()["images"], "the picture is finished")
    told = client.delete(f"/api/v1/jobs/{name}").json()
    assert (told["state"], told["story"]) == ("cancelled", None)


def test_previews_come_while_it_runs(client: httpx.Client) -> None:
    job = client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 40, "seed": 1}}).json()["id"]
    shown = [data for _, kind, data in events(client, job) if kind == "preview"]
    assert shown
    picture = open_image(base64.b64decode(shown[0]["data"].partition(",")[2]))
    assert picture.size == (shown[0]["width"], shown[0]["height"])
    assert picture.width in (8, 16)
    silent = client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 10}, "preview": False}).json()["id"]
    assert "preview" not in {kind for _, kind, _ in events(client, silent)}


def test_a_reader_that_comes_back_is_told_the_rest_and_then_nothing(client: httpx.Client) -> None:
    job = client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 2, "seed": 1, "count": 3}}).json()["id"]
    whole = events(client, job)
    lasting = [event for event in whole if event[1] in {"image", "done"}]
    for number, _, _ in lasting[:-1]:
        rest = events(client, job, **{"Last-Event-ID": str(number)})
        assert rest == [event for event in lasting if event[0] > number]
    over = client.get(f"/api/v1/jobs/{job}/events", headers={"Last-Event-ID": str(lasting[-1][0])})
    assert over.status_code == 204
    assert client.get(f"/api/v1/jobs/{job}/events?after={lasting[-1][0]}").status_code == 204


def test_several_requests_are_one_job(client: httpx.Client) -> None:
    requests = [{"prompt": "x", "steps": steps, "seed": 4, "count": count} for steps, count in ((1, 1), (2, 2), (3, 1))]
    job = client.post("/api/v1/jobs", json={"requests": requests}).json()
    assert job["total"] == 4
    images = [data for _, kind, data in events(client, job["id"]) if kind == "image"]
    assert [(one["request"], one["image"], one["number"]) for one in images] == [
        (0, 0, 0),
        (1, 0, 1),
        (1, 1, 2),
        (2, 0, 3),
    ]
    steps = [client.get(f"/api/v1/images/{one['id']}").json()["steps"] for one in images]
    assert steps == [1, 2, 2, 3]


def test_cancel_stops_one_job_and_keeps_what_is_finished(client: httpx.Client) -> None:
    job = client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 60, "count": 9}}).json()["id"]
    until_true(lambda: client.get(f"/api/v1/jobs/{job}").json()["images"], "a picture is finished")
    told = client.delete(f"/api/v1/jobs/{job}").json()
    assert told["state"] == "cancelled"
    assert 1 <= len(told["images"]) < 9
    assert client.get(told["images"][0]["url"]).status_code == 200
    assert events(client, job)[-1][1] == "cancelled"
    assert client.delete(f"/api/v1/jobs/{job}").json()["state"] == "cancelled"


def test_the_gallery_finds_tells_and_forgets(client: httpx.Client) -> None:
    job = made(client, prompt="an umbrella zebra", negative="rain", steps=1, seed=11)
    name = job["images"][0]["id"]
    found = client.get("/api/v1/images", params={"q": "zebra umbrella"}).json()
    assert [one["id"] for one in found["images"]] == [name]
    assert found["total"] == 1
    told = client.get(f"/api/v1/images/{name}").json()
    assert told["job"] == job["id"]
    assert told["infotext"].startswith("an umbrella zebra\nNegative prompt: rain\nSteps: 1")
    assert told["asked"] == {"prompt": "an umbrella zebra", "negative": "rain", "steps": 1, "seed": 11}
    assert str(Path.cwd()) not in json.dumps(told["record"])
    again = client.post("/api/v1/jobs", json={"request": told["request"]})
    assert again.status_code == 202, again.text
    other = finished(client, again.json()["id"])["images"][0]
    one, two = (open_image(client.get(url).content) for url in (told["url"], other["url"]))
    assert (np.asarray(one) == np.asarray(two)).all()
    assert client.delete(f"/api/v1/images/{name}").status_code == 204
    for path in ("", "/file", "/thumb"):
        assert client.get(f"/api/v1/images/{name}{path}").status_code == 404
    assert client.delete(f"/api/v1/images/{name}").status_code == 404


def test_pictures_are_edited_by_their_ids_and_know_their_parents(client: httpx.Client) -> None:
    upload = client.post("/api/v1/uploads", content=PHOTO, headers={"content-type": "image/png"})
    assert upload.status_code == 201
    assert upload.json()["width"] == 64
    first = made(client, prompt="x", image={"upload": upload.json()["id"]}, strength=0.5, steps=4, seed=1)
    name = first["images"][0]["id"]
    second = made(client, prompt="y", image={"upload": name}, strength=0.5, steps=4, seed=1)
    told = client.get(f"/api/v1/images/{second['images'][0]['id']}").json()
    assert told["parents"] == [name]
    assert told["request"]["image"] == {"upload": name}
    assert client.get(upload.json()["url"]).status_code == 200


def test_an_upload_keeps_nothing_but_pixels(client: httpx.Client) -> None:
    data = encode(Image.new("RGBA", (20, 10), (255, 0, 0, 0)), "secret", {"schema": 1, "secret": "yes"})
    told = client.post("/api/v1/uploads", content=data, headers={"content-type": "image/png"}).json()
    kept = client.get(told["url"]).content
    assert b"secret" not in kept
    with Image.open(io.BytesIO(kept)) as image:
        assert (image.mode, image.size) == ("RGB", (20, 10))


def test_foreign_pictures_become_requests(client: httpx.Client, golden: Path) -> None:
    headers = {"content-type": "image/png"}
    theirs = client.post("/api/v1/inspect", content=(golden / "a1111.png").read_bytes(), headers=headers).json()
    assert theirs["source"] == "a1111"
    assert theirs["request"]["prompt"]
    assert client.post("/api/v1/estimate", json={"request": theirs["request"]}).status_code == 200
    ours = made(client, prompt="a fox", steps=1, seed=2)
    file = client.get(ours["images"][0]["url"]).content
    told = client.post("/api/v1/inspect", content=file, headers=headers).json()
    assert (told["source"], told["model"]) == ("mezzotint", "icons")
    assert told["request"]["seed"] == 2
    nothing = client.post("/api/v1/inspect", content=PHOTO, headers=headers).json()
    assert (nothing["source"], nothing["request"]) == (None, None)


def test_models_are_listed_and_inspected(client: httpx.Client) -> None:
    told = client.get("/api/v1/models").json()
    by_name = {one["name"]: one for one in told["models"]}
    assert by_name["icons"]["is_current"]
    assert by_name["unclip"]["bytes"] > 1000
    details = client.get(f"/api/v1/models/{by_name['unclip']['id']}").json()
    assert details["preset"].startswith("sd2-unclip")
    assert details["decided_by"]
    assert "path" not in details
    assert client.get("/api/v1/models/m_00000000000000000000000000").status_code == 404


def test_tokens_and_samplers_and_schema(client: httpx.Client) -> None:
    assert client.post("/api/v1/tokens", json={"text": "a red fox"}).json() == {"count": 3, "room": 75, "dropped": []}
    long = client.post("/api/v1/tokens", json={"text": "word " * 80}).json()
    assert (long["count"], len(long["dropped"])) == (80, 5)
    told = client.get("/api/v1/samplers").json()
    names = {one["name"]: one for one in told["samplers"]}
    assert names["euler_ancestral"]["options"]["eta"]["default"] == 1.0
    fields = client.get("/api/v1/schema").json()["properties"]
    assert {"prompt", "steps", "mask", "mark"} <= set(fields)
    assert not {"refiner", "path"} & set(fields)


def test_an_estimate_is_of_the_right_size(client: httpx.Client) -> None:
    made(client, prompt="x", steps=10, seed=1)
    told = client.post("/api/v1/estimate", json={"request": {"steps": 20, "count": 3}}).json()
    assert (told["images"], told["evaluations"]) == (3, 60)
    assert 0 < told["seconds"] < 120


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one of request and requests is needed"),
    ({"request": {}, "requests": [{}]}, "exactly one of request and requests is needed"),
    ({"request": {"stesp": 3}}, "request.stesp: Extra inputs are not permitted"),
    ({"request": {"sampler": "eular"}}, "unknown sampler 'eular'; did you mean 'euler'?"),
    ({"request": {"width": 65}}, "width 65: must be a multiple of 8"),
    ({"request": {"width": 8192, "height": 8192}}, "8192x8192: at most 4194304 pixels are made here"),
    ({"request": {"steps": 0}}, "request.steps: must be greater than or equal to 1"),
    ({"request": {"count": 65}}, "request.count: must be less than or equal to 64"),
    ({"request": {"image": {"path": "/etc/passwd"}}}, "image.upload: Field required"),
    ({"request": {"image": "/etc/passwd"}}, "request.image"),
    ({"request": {"image": {"upload": "p_00000000000000000000000000"}}}, "there is no picture 'p_0000"),
    ({"request": {"refiner": "/models/x"}}, "request.refiner: Extra inputs are not permitted"),
    ({"requests": []}, "requests: List should have at least 1 item"),
    ({"request": {"prompt": "x" * 20001}}, "request.prompt: String should have at most 20000 characters"),
    ({"request": {"options": {"eta": 7}, "sampler": "euler_ancestral"}}, "options.eta = 7: must be from 0 to 1"),
]


@pytest.mark.parametrize(("body", "words"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_request_is_a_problem_in_words(client: httpx.Client, body: dict[str, Any], words: str) -> None:
    answer = client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert words in problem["detail"]
    assert problem["code"] == "wrong_request"
    assert problem["request_id"] == answer.headers["x-request-id"]


UNREADABLE: list[tuple[str, bytes, int, str]] = [
    ("application/x-www-form-urlencoded", b'{"request":{}}', 415, "with 'Content-Type: application/json' only (found"),
    ("", b'{"request":{}}', 415, "(found 'none')"),
    ("application/json", b"{a", 400, "the body is not JSON: Expecting property name"),
    ("application/json", b"[1]", 400, "the body must be an object"),
]


@pytest.mark.parametrize(("kind", "body", "status", "words"), UNREADABLE, ids=str)
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img", "/hf/text-to-image"])
def test_a_body_that_cannot_be_read_is_told_what_it_lacks(
    client: httpx.Client, path: str, kind: str, body: bytes, status: int, words: str
) -> None:
    """What curl sends when nobody thinks of its headers, first of all."""
    answer = client.post(path, content=body, headers={"content-type": kind} if kind else {})
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_a_path_that_is_not_there_is_told_where_to_look(client: httpx.Client) -> None:
    assert "GET /openapi.json lists" in client.get("/v1/nothing").json()["error"]["message"]


def test_what_only_the_model_can_refuse_fails_the_job_in_words(client: httpx.Client) -> None:
    upload = client.post("/api/v1/uploads", content=PHOTO, headers={"content-type": "image/png"}).json()["id"]
    job = made(client, reference={"upload": upload})
    assert job["state"] == "failed"
    assert job["error"]["code"] == "wrong_request"
    assert "is no unCLIP model" in job["error"]["detail"]
    assert "/" not in job["error"]["detail"].replace("image/", "")


def test_a_repeated_call_with_the_same_key_is_the_same_job(client: httpx.Client) -> None:
    """Also when both come at once."""
    body = {"request": {"prompt": "x", "steps": 1, "seed": 1}}
    key = {"Idempotency-Key": f"key-{time.time()}"}
    found: list[str] = []

    def post() -> None:
        found.append(client.post("/api/v1/jobs", json=body, headers=key).json()["id"])

    tasks = [threading.Thread(target=post) for _ in range(6)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert len(set(found)) == 1
    finished(client, found[0])
    assert client.post("/api/v1/jobs", json=body, headers=key).json()["state"] == "done"
    other = client.post("/api/v1/jobs", json={"request": {"prompt": "y"}}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")


def test_server_events_tell_what_changes(sleeper: Sleepers) -> None:
    sleeping = sleeper(service=0.3)
    states: list[dict[str, Any]] = []  # Any: JSON
    with httpx.Client(base_url=sleeping.address, timeout=20) as client:
        client.post("/api/v1/jobs", json={"request": {"guidance": 1, "count": 4}})
        with client.stream("GET", "/api/v1/events") as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    states.append(json.loads(line[6:]))
                    if states[-1]["queue"]["running"] == 0:
                        break
    assert states[0]["queue"]["running"] == 1
    assert states[0]["model"]["name"] == "one"


def test_switching_models_waits_for_jobs_that_run_and_tells_when_it_failed(sleeper: Sleepers) -> None:
    sleeping = sleeper(service=0.2)
    with httpx.Client(base_url=sleeping.address, timeout=20) as client:
        names = {one["name"]: one["id"] for one in client.get("/api/v1/models").json()["models"]}
        running = client.post("/api/v1/jobs", json={"request": {"prompt": "slow", "guidance": 1}}).json()["id"]
        answer = client.post(f"/api/v1/models/{names['two']}/load")
        assert (answer.status_code, answer.json()["state"]) == (202, "loading")
        refused = client.post("/api/v1/jobs", json={"request": {}})
        assert (refused.status_code, refused.json()["code"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) > 0
        assert finished(client, running)["state"] == "done"
        until_true(lambda: client.get("/readyz").status_code == 200, "the other model is loaded")
        assert client.get("/api/v1/server").json()["model"]["name"] == "two"
        other = client.post("/api/v1/jobs", json={"request": {"guidance": 1}, "model": names["one"]}).json()["id"]
        assert finished(client, other)["state"] == "done"
        broken = client.post("/api/v1/jobs", json={"request": {"guidance": 1}, "model": names["broken"]})
        told = finished(client, broken.json()["id"])
        assert (told["state"], told["error"]["code"]) == ("failed", "unloadable")
        until_true(lambda: client.get("/readyz").status_code == 200, "it goes back to the model before")
        assert client.post(f"/api/v1/models/{names['broken']}/load").status_code == 202
        until_true(lambda: client.get("/readyz").status_code == 200, "it goes back to the first model")
        assert client.get("/api/v1/server").json()["model"]["name"] == "one"


def test_how_the_first_model_is_loaded_is_not_said_of_others(sleeper: Sleepers) -> None:
    sleeping = sleeper(source=Source(dtype="float32", preset="sd15", vae=Path("own.safetensors")))
    with httpx.Client(base_url=sleeping.address, timeout=20) as client:
        names = {one["name"]: one["id"] for one in client.get("/api/v1/models").json()["models"]}
        told = {}
        for name in ("two", "one"):
            client.post(f"/api/v1/models/{names[name]}/load")
            until_true(lambda: client.get("/readyz").status_code == 200, "the other model is loaded")
            told[name] = client.get("/api/v1/server").json()["model"]["title"]
    assert told["two"] == "dtype=float32 device=auto weights=auto"
    assert told["one"] == f"{told['two']} preset=sd15 vae=own.safetensors"


def test_health_and_metrics(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    made(client, prompt="a prompt that is nobody's business", steps=2, seed=1)
    text = client.get("/metrics").text
    for name in (
        "num_queue_reqs",
        "num_running_reqs",
        'requests_total{dialect="native",status="done"}',
        "request_latency_seconds_bucket",
        "queue_time_seconds_bucket",
        "steps_per_second",
        "model_loaded_info",
    ):
        assert name in text
    assert "nobody" not in text
    assert "/" not in text.replace("/ ", "")


def test_pictures_out_of_the_gallery_pass(client: httpx.Client) -> None:
    answer = client.post("/api/v1/jobs", json={"request": {"prompt": "passing by", "steps": 1}, "keep": False})
    picture = finished(client, answer.json()["id"])["images"][0]
    assert client.get(picture["url"]).status_code == 200
    assert client.get("/api/v1/images?q=passing").json()["total"] == 0


def test_files_on_disk_are_the_pictures(client: httpx.Client, served: Served) -> None:
    name = made(client, prompt="on disk", steps=1, seed=5)["images"][0]["id"]
    (path,) = served.gallery.rglob(f"{name}.png")
    record = read_metadata(path).record
    assert record is not None
    assert record["resolved"]["request"]["prompt"] == "on disk"
