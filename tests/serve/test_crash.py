"""Killed at any moment, engine or server: nothing is corrupt, nothing is lost without a word, and it goes on."""

import asyncio
import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from mezzotint.images import open_image
from mezzotint.serve.store import Store
from serve.conftest import Served, Sleepers, events, finished, made, start, until_true


def engine_of(served: Served) -> psutil.Process:
    """The engine process of a server."""
    (engine,) = (
        child for child in psutil.Process(served.process.pid).children() if "engine" in " ".join(child.cmdline())
    )
    return engine


def test_engine_and_server_are_killed_during_jobs(shelf_folder: Path, tmp_path: Path) -> None:
    """First the engine, then the server, then both are there again; at last the server is told to end."""
    gallery = tmp_path / "gallery"
    served = start(shelf_folder, gallery, "--queue", "1000", "--grace", "100")
    try:
        served.ready()
        engine_is_killed(served)
        jobs = server_is_killed(served)
        served = start(shelf_folder, gallery, "--queue", "1000", "--grace", "100")
        everything_is_told_after(served, jobs)
        server_ends_in_order(served)
    finally:
        served.stop(signal.SIGKILL)


def engine_is_killed(served: Served) -> None:
    with served.client() as client:
        alone = made(client, prompt="x", steps=3, seed=5)
        running = [
            client.post("/api/v1/jobs", json={"request": {"steps": 900, "seed": 1}}).json()["id"] for _ in range(4)
        ]
        waiting = client.post("/api/v1/jobs", json={"request": {"prompt": "x", "steps": 900, "seed": 5}}).json()["id"]
        until_true(lambda: client.get("/api/v1/server").json()["queue"]["running"] == 4, "four jobs run")
        until_true(lambda: client.get(f"/api/v1/jobs/{running[0]}").json()["progress"], "steps are made")
        old = engine_of(served).pid
        engine_of(served).kill()
        for job in running:
            told = finished(client, job)
            assert told["state"] == "failed"
            assert told["error"] == {
                "code": "engine_restarted",
                "detail": "the engine broke down; try again",
                "retryable": True,
            }
            assert events(client, job)[-1][1] == "failed"
        assert client.get("/healthz").status_code == 200
        until_true(lambda: client.get("/readyz").status_code == 200, "there is another engine")
        assert engine_of(served).pid != old
        until_true(lambda: client.get(f"/api/v1/jobs/{waiting}").json()["state"] == "running", "the waiting job runs")
        client.delete(f"/api/v1/jobs/{waiting}")
        again = made(client, prompt="x", steps=3, seed=5)
        one, other = (client.get(job["images"][0]["url"]).content for job in (alone, again))
        assert one == other, "the same bytes from another engine"


def server_is_killed(served: Served) -> dict[str, str]:
    """Kills it; the jobs that ran, waited and were done."""
    with served.client() as client:
        done = made(client, prompt="done", steps=1, seed=1)["id"]
        jobs = {"done": done}
        for name, steps in (("running", 900), ("waiting", 900)):
            for number in range(4 if name == "running" else 2):
                answer = client.post(
                    "/api/v1/jobs",
                    json={"request": {"prompt": name, "steps": steps}},
                    headers={"Idempotency-Key": f"{name}{number}"},
                )
                jobs[f"{name}{number}"] = answer.json()["id"]
        until_true(lambda: client.get(f"/api/v1/jobs/{jobs['running0']}").json()["progress"], "steps are made")
        engine = engine_of(served)
        served.stop(signal.SIGKILL)
        until_true(
            lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, "its engine ends too", 20
        )
    return jobs


def everything_is_told_after(served: Served, jobs: dict[str, str]) -> None:
    served.ready()
    with served.client() as client:
        for name, job in jobs.items():
            told = client.get(f"/api/v1/jobs/{job}").json()
            if name == "done":
                assert told["state"] == "done"
                assert client.get(told["images"][0]["url"]).status_code == 200
                assert [kind for _, kind, _ in events(client, job)] == ["image", "done"]
            else:
                assert (told["state"], told["error"]["code"]) == ("failed", "interrupted"), name
                assert told["error"]["retryable"]
                assert [kind for _, kind, _ in events(client, job)] == ["failed"]
        again = client.post(
            "/api/v1/jobs",
            json={"request": {"prompt": "running", "steps": 900}},
            headers={"Idempotency-Key": "running0"},
        )
        assert again.json()["id"] == jobs["running0"], "the key is still known"
        for picture in client.get("/api/v1/images?limit=200").json()["images"]:
            open_image(client.get(picture["url"]).content)
        assert not list(served.gallery.rglob("*.tmp"))


def server_ends_in_order(served: Served) -> None:
    """SIGTERM under load: what was taken is finished, what comes is told to come back, and the exit is clean."""
    with served.client() as client:
        taken = [client.post("/api/v1/jobs", json={"request": {"steps": 60, "seed": 1}}).json()["id"] for _ in range(3)]
        answers: list[httpx.Response] = []

        def generate() -> None:
            with served.client() as other:
                answers.append(other.post("/v1/images/generations", json={"prompt": "x", "steps": 60}))

        task = threading.Thread(target=generate)
        task.start()
        until_true(lambda: client.get("/api/v1/server").json()["queue"]["running"] == 4, "all are taken")
        served.process.send_signal(signal.SIGTERM)
        refused: list[httpx.Response] = []

        def is_refused() -> bool:
            refused.append(client.post("/api/v1/jobs", json={"request": {"steps": 1}}))
            return refused[-1].status_code == 503

        until_true(is_refused, "no more jobs are taken")
        assert refused[-1].json()["code"] == "draining"
        assert int(refused[-1].headers["retry-after"]) > 0
        assert client.get("/readyz").status_code == 503
        task.join(60)
        assert answers[0].status_code == 200
    assert served.process.wait(60) == 0
    served.stop()  # reads what it has said
    lines = "".join(served.said).splitlines()
    assert [line for line in lines if line.startswith("ready       model: Stable Diffusion 1.x, ")], lines
    assert [line for line in lines if line.startswith("draining    ") and "jobs are finished first" in line], lines
    store = Store(served.gallery)
    told = [store.job(job) for job in taken]
    store.close()
    assert [job and job["state"] for job in told] == ["done"] * 3


def test_a_job_that_kills_the_engine_takes_no_other_with_it_but_those_that_ran(sleeper: Sleepers) -> None:
    sleeping = sleeper(service=0.05, places=1)
    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        jobs: dict[str, str] = {}
        for prompt in ("slow", "die", "b", "fail", "c"):
            jobs[prompt] = client.post("/api/v1/jobs", json={"request": {"prompt": prompt, "guidance": 1}}).json()["id"]
        states = {prompt: finished(client, job) for prompt, job in jobs.items()}
        assert {prompt: told["state"] for prompt, told in states.items()} == {
            "slow": "done",
            "die": "failed",
            "b": "done",
            "fail": "failed",
            "c": "done",
        }
        assert states["die"]["error"]["code"] == "engine_restarted"
        assert states["fail"]["error"] == {"code": "failed", "detail": "as told", "retryable": False}
        assert "engine_deaths_total 1.0" in client.get("/metrics").text


def test_a_model_that_kills_the_engine_is_given_up_after_the_second_time(
    sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is started again, once more tries that model, and then serves the one from before."""
    monkeypatch.setattr("mezzotint.serve.link.RESTART_S", (0.1,))
    sleeping = sleeper()
    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        ids = {model["name"]: model["id"] for model in client.get("/api/v1/models").json()["models"]}
        assert client.post(f"/api/v1/models/{ids['deadly']}/load").status_code == 202
        until_true(lambda: client.get("/readyz").status_code == 200, "the server is ready again")
        assert client.get("/api/v1/server").json()["model"]["name"] == "one"
        assert "engine_deaths_total 2.0" in client.get("/metrics").text
        assert made(client, prompt="a", guidance=1)["state"] == "done"


def test_a_full_disk_fails_jobs_and_the_server_stays(sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a picture nor the end of its job can be written down; with space again, the next one is made."""
    sleeping = sleeper()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        with monkeypatch.context() as patch:
            patch.setattr(sleeping.hub.store, "add_picture", full)
            patch.setattr(sleeping.hub.store, "end_job", full)
            patch.setattr(sleeping.hub.store, "expire", full)
            failed = [made(client, prompt="a", guidance=1) for _ in range(2)]
            assert [job["state"] for job in failed] == ["failed"] * 2
        assert made(client, prompt="a", guidance=1)["state"] == "done"
        assert "engine_deaths_total 0.0" in client.get("/metrics").text


def test_whatever_goes_wrong_beside_the_engine_it_is_started_again(
    sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mezzotint.serve.link.RESTART_S", (0.1,))
    sleeping = sleeper()
    live = sleeping.hub.link._live  # pyright: ignore[reportPrivateUsage]  # what is made to fail
    tries = 0

    async def failing() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(12, "Cannot allocate memory")
        return await live()

    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        monkeypatch.setattr(sleeping.hub.link, "_live", failing)
        assert made(client, prompt="die", guidance=1)["state"] == "failed"
        until_true(lambda: tries == 3 and client.get("/readyz").status_code == 200, "the server is ready again")
        assert made(client, prompt="a", guidance=1)["state"] == "done"


def test_a_server_that_is_shut_down_takes_no_other_model(sleeper: Sleepers) -> None:
    sleeping = sleeper(service=0.5)
    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        ids = {model["name"]: model["id"] for model in client.get("/api/v1/models").json()["models"]}
        client.post("/api/v1/jobs", json={"request": {"prompt": "a", "guidance": 1}})
        draining = asyncio.run_coroutine_threadsafe(sleeping.hub.drain(20), sleeping.loop)
        until_true(lambda: sleeping.hub.state == "draining", "it is being shut down")
        answer = client.post(f"/api/v1/models/{ids['two']}/load")
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        draining.result(20)
        assert sleeping.hub.state == "draining"


def test_clients_that_vanish_leave_nothing_running(sleeper: Sleepers) -> None:
    """G18, a hundred of them: jobs whose client is gone stop; a job of the page goes on, for it can be found again."""
    vanish(sleeper(service=0.5, queue=200), 100)


def vanish(sleeping: Any, count: int) -> None:  # Any: a Sleeper
    port = int(sleeping.address.rpartition(":")[2])
    bodies = {
        "/v1/images/generations": {"prompt": "x"},
        "/sdapi/v1/txt2img": {"steps": 5, "width": 64, "height": 64},
        "/hf/text-to-image": {"inputs": "x"},
        "/v1/images/generations?s": {"prompt": "x", "stream": True},
    }
    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        stays = client.post("/api/v1/jobs", json={"request": {"prompt": "stays", "guidance": 1}}).json()["id"]
        sockets: list[Any] = []  # Any: sockets
        for number in range(count):
            path, body = list(bodies.items())[number % len(bodies)]
            sockets.append(_begun(port, path.partition("?")[0], body))
        until_true(lambda: len(sleeping.hub.jobs) >= count, "all of them are taken")
        began = time.monotonic()
        for one in sockets:
            one.close()
        until_true(lambda: len(sleeping.hub.queue.waiting) + len(sleeping.hub.queue.running) <= 1, "they stop", 10)
        assert time.monotonic() - began < 5
        assert finished(client, stays)["state"] == "done"
        assert not [job for job in sleeping.hub.jobs.values() if job.dialect != "native"]


def _begun(port: int, path: str, body: object) -> Any:  # Any: a socket
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1])
def test_cancel_races_with_the_end(sleeper: Sleepers, moment: float) -> None:
    """Whichever is first: one end, told once, and a place that is free again."""
    sleeping = sleeper(service=0.1, places=1)
    with httpx.Client(base_url=sleeping.address, timeout=30) as client:
        job = client.post("/api/v1/jobs", json={"request": {"guidance": 1}}).json()["id"]
        time.sleep(moment)
        client.delete(f"/api/v1/jobs/{job}")
        seen = [kind for _, kind, _ in events(client, job) if kind in {"done", "cancelled", "failed"}]
        assert seen in (["done"], ["cancelled"])
        assert made(client, prompt="next", guidance=1)["state"] == "done"
        assert sleeping.hub.queue.held == 0
