"""Thousands of jobs: memory, files, handles and threads stay as they are."""

import signal
import statistics
import time
from itertools import combinations
from pathlib import Path
from typing import Any  # Any: JSON

import httpx
import psutil
import pytest

from serve.conftest import Served, made, recorded, start, until_true
from serve.test_crash import engine_of

SIZES = ((64, 64), (64, 48), (48, 64), (32, 32))


def slope(points: list[tuple[int, float]]) -> float:
    """The median of the slopes between any two points (Theil and Sen): a few outliers do not move it."""
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2))


def test_the_slope_is_that_of_a_line_with_outliers() -> None:
    points = [(x, 2.0 * x + (1000 if x % 10 == 0 else 0)) for x in range(1, 40)]
    assert slope(points) == pytest.approx(2.0, abs=0.2)
    assert slope([(x, 5.0) for x in range(9)]) == 0


def soak(served: Served, warm_up: int, jobs: int, every: int) -> dict[str, Any]:  # Any: numbers
    """Many small jobs of every dialect, each waited for; growth of server and engine after the warm-up."""
    server = psutil.Process(served.process.pid)
    engine = engine_of(served)
    memory: dict[str, list[tuple[int, float]]] = {"server": [], "engine": []}
    handles: list[int] = []
    began = time.monotonic()
    with served.client() as client:
        for number in range(warm_up + jobs):
            one(client, number)
            if number >= warm_up and number % every == 0:
                memory["server"].append((number, float(server.memory_info().rss)))
                memory["engine"].append((number, float(engine.memory_info().rss)))
                handles.append(server.num_fds() + engine.num_fds() + server.num_threads() + engine.num_threads())
        until_true(lambda: client.get("/api/v1/server").json()["queue"]["running"] == 0, "all is done")
    found: dict[str, Any] = {f"{name} B/job": round(slope(points)) for name, points in memory.items()}  # Any: as above
    shares = {name: points[-1][1] / points[0][1] - 1 for name, points in memory.items()}
    found |= {f"{name} growth": round(share, 4) for name, share in shares.items()}
    return found | {"handles": max(handles) - min(handles), "seconds": round(time.monotonic() - began)}


def one(client: httpx.Client, number: int) -> None:
    """One small job, in each dialect in turn."""
    width, height = SIZES[number % len(SIZES)]
    fields = {"width": width, "height": height, "steps": 1, "seed": number}
    match number % 4:
        case 0:
            answer = client.post(
                "/v1/images/generations", json={"prompt": "x", "size": f"{width}x{height}", "steps": 1}
            )
        case 1:
            answer = client.post("/sdapi/v1/txt2img", json={**fields, "prompt": "x"})
        case 2:
            told = {"width": width, "height": height, "num_inference_steps": 1}
            answer = client.post("/hf/text-to-image", json={"inputs": "x", "parameters": told})
        case _:
            job = client.post("/api/v1/jobs", json={"request": {"prompt": "x", **fields}, "keep": False}).json()["id"]
            answer = client.get(f"/api/v1/jobs/{job}/events")  # to its end
            assert "event: done" in answer.text
    assert answer.status_code == 200, answer.text[:300]


def test_a_short_soak_leaks_no_handles(served: Served) -> None:
    """What shows in sixty jobs; for memory the long form is needed."""
    found = soak(served, 20, 40, 4)
    assert found["handles"] <= 4, found
    assert found["engine growth"] < 0.2, found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_jobs_grow_no_memory(shelf_folder: Path, tmp_path: Path) -> None:
    """G22: at most 1 KiB a job after 500 of warm-up, and 3 % in all; with the kernels that users get."""
    served = start(shelf_folder, tmp_path / "gallery", model="icons", kernels="auto")
    try:
        served.ready()
        with served.client() as client:
            before = made(client, prompt="a red heart", steps=3, seed=1)
            first = client.get(before["images"][0]["url"]).content
        found = soak(served, 500, 2000, 20)
        with served.client() as client:
            after = made(client, prompt="a red heart", steps=3, seed=1)
            assert client.get(after["images"][0]["url"]).content == first, "the first and the last are the same bytes"
    finally:
        served.stop(signal.SIGKILL)
    print(found)
    assert found["server B/job"] <= 1024, found
    assert found["engine B/job"] <= 1024, found
    assert found["server growth"] <= 0.03, found
    assert found["engine growth"] <= 0.03, found
    assert found["handles"] <= 4, found
    recorded("G22 soak", {"warm-up": 500, "jobs": 2000, **found})
