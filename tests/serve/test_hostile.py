"""Nothing that the network sends makes the server say too much, touch a file outside its folder, or fall over."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error  # pyright: ignore[reportUnknownVariableType]  # loosely typed

from serve.conftest import Served, made, recorded, start, until_true
from serve.hostile import message, requests

OPTIONS = ("--max-pixels", "6400", "--allow-host", "pictures.example")


@pytest.fixture(scope="module")
def served(shelf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real server of its own, which makes only small pictures: what is asked for by mistake must not take hours."""
    served = start(shelf_folder, tmp_path_factory.mktemp("hostile") / "gallery", *OPTIONS)
    try:
        served.ready()
        yield served
    finally:
        served.stop(signal.SIGKILL)


LEAKS = (b"Traceback", b'File "', b"site-packages", b"sqlite3.", b"canary-content", b"root:x:0")
ADDRESS = re.compile(rb"(?<![A-Za-z0-9+/_])0x7f")  # within a picture's base64 or an id, these letters come by chance


def leaks(body: bytes) -> list[bytes]:
    """What of the server's inside an answer tells."""
    return [leak for leak in LEAKS if leak in body] + ADDRESS.findall(body)


ANSWERS = {100, *range(200, 211), 301, 302, 304, 307, *range(400, 418), 422, 426, 429, 431, 499, 503}


def host_of(served: Served) -> str:
    return served.address.removeprefix("http://")


def exchanged(served: Served, sent: bytes, *, is_half: bool, patience: float = 20.0) -> bytes:
    """What the server answers; of a half request, what it has said when we hang up."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=patience) as connection:
        with contextlib.suppress(OSError):  # it may close before it has read everything
            connection.sendall(sent)
        if is_half:
            connection.settimeout(0.05)
        found = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(1 << 16):
                found += part
                if len(found) > 1 << 24:
                    break
        return found


def state_of(folder: Path, *own: Path) -> dict[str, tuple[int, str]]:
    """Every file of a folder but those in the server's own folders, with its time and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {*own} & {*path.parents}
    }


def attack(served: Served, count: int, seed: int) -> dict[int, int]:
    """Send so many hostile requests; how often each status came."""
    outside = served.gallery.parent
    (outside / "canary.png").write_bytes(b"canary-content")
    own = (served.gallery, outside / "cache")  # what it remembers of models is written when it is first needed
    before = state_of(outside, *own)
    statuses: dict[int, int] = {}
    for hostile in requests(host_of(served), count, seed):
        began = time.monotonic()
        answer = exchanged(served, hostile.sent, is_half=hostile.is_half)
        answers = _answers(answer)
        if not hostile.is_half:
            assert time.monotonic() - began < 20, f"{hostile.name}: no end"
            assert answers, f"{hostile.name}: no answer"
            is_head = hostile.sent.startswith(b"HEAD ")
            assert all(is_whole(*one, is_head=is_head) for one in answers), f"{hostile.name}: cut short: {answer!r}"
        for head, body in answers:
            status = int(head.split(b" ", 2)[1])
            statuses[status] = statuses.get(status, 0) + 1
            assert status in ANSWERS, f"{hostile.name}: {status} {answer[:500]!r}"
            assert not leaks(body), f"{hostile.name}: {body[:500]!r}"
            lowered = head.lower()
            if b"uvicorn" not in lowered and status not in {400} and b"x-request-id" in lowered:
                assert b"nosniff" in lowered, hostile.name
                assert b"text/html" not in lowered or status in {200, 304}, hostile.name
            assert b"set-cookie: x" not in lowered, hostile.name
            if status in {429, 503}:
                assert b"retry-after" in lowered, hostile.name
    assert state_of(outside, *own) == before, "a file outside the gallery was touched"
    with served.client() as client:
        until_true(lambda: client.get("/readyz").status_code == 200, "the server is ready again")
        until_true(lambda: client.get("/api/v1/server").json()["queue"]["running"] == 0, "what was asked for is done")
        assert made(client, prompt="still well", steps=1)["state"] == "done"
        listed = client.get("/api/v1/images")
        assert listed.headers["content-type"] == "application/json"
        for picture in listed.json()["images"][:20]:
            file = client.get(picture["url"])
            assert file.headers["content-type"] == "image/png"
            assert file.content.startswith(b"\x89PNG")
    said = "".join(served.said)
    assert "Traceback" not in said, said[max(0, said.index("Traceback") - 300) :][:4000]
    return statuses


def is_whole(head: bytes, body: bytes, *, is_head: bool = False) -> bool:
    """Whether all of an answer has come: as many bytes as it says, or chunks up to the last."""
    if not is_head and b"\r\ntransfer-encoding: chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return length is None or len(body) == (0 if is_head else int(length[1]))


def _answers(received: bytes) -> list[tuple[bytes, bytes]]:
    """Heads and bodies; of a body that stands in the way of parsing, all of it."""
    parts = re.split(rb"(?=HTTP/1\.1 \d\d\d )", received)
    return [(head, body) for part in parts if part for head, _, body in [part.partition(b"\r\n\r\n")]]


def test_hostile_requests_change_and_learn_nothing(served: Served) -> None:
    statuses = attack(served, 400, seed=0)
    assert sum(statuses.get(status, 0) for status in (400, 403, 404, 413, 415, 422)) > 150


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_hostile_requests_change_and_learn_nothing(served: Served) -> None:
    seed = int(os.environ.get("HOSTILE_SEED", "1"))
    statuses = attack(served, 5000, seed)
    told = {str(status): count for status, count in sorted(statuses.items())}
    recorded("G12 to G14 hostile requests", {"requests": 5000, "seed": seed, "server errors": 0, "answers": told})


STATE_CHANGING = [
    ("POST", "/api/v1/jobs", b'{"request":{"steps":1}}'),
    ("DELETE", "/api/v1/jobs", b""),
    ("DELETE", "/api/v1/images/p_00000000000000000000000000", b""),
    ("POST", "/api/v1/uploads", b"x"),
    ("POST", "/sdapi/v1/txt2img", b'{"steps":1}'),
    ("POST", "/sdapi/v1/interrupt", b""),
    ("POST", "/v1/images/generations", b'{"prompt":"x"}'),
    ("POST", "/hf/text-to-image", b'{"inputs":"x"}'),
]
FOREIGN = [
    ("Origin: http://evil.example", None),
    ("Origin: null", None),
    ("Origin: https://127.0.0.1.evil.example", None),
    ("Sec-Fetch-Site: cross-site", None),
    ("Sec-Fetch-Site: same-site", None),
    (None, "evil.example"),
    (None, "127.0.0.1:1"),
    (None, "localhost.evil.example"),
]


@pytest.mark.parametrize(("line", "host"), FOREIGN, ids=str)
def test_pages_of_other_sites_and_rebound_names_are_refused(served: Served, line: str | None, host: str | None) -> None:
    for method, path, body in STATE_CHANGING:
        sent = message(method, path, host or host_of(served), body, *([line] if line else []))
        answer = exchanged(served, sent, is_half=False)
        assert answer.startswith(b"HTTP/1.1 403"), (method, path, answer[:200])


def test_behind_a_proxy_links_lead_through_it(served: Served) -> None:
    """A proxy with TLS on this machine: its name was allowed, and it says how it was asked."""
    headers = {"host": "pictures.example", "x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https"}
    body = {"prompt": "x", "steps": 1, "response_format": "url", "size": "64x64"}
    with served.client() as client:
        answer = client.post("/v1/images/generations", json=body, headers=headers)
        assert answer.json()["data"][0]["url"].startswith("https://pictures.example/v1/files/p_"), answer.text
        page = {**headers, "origin": "https://pictures.example", "sec-fetch-site": "same-origin"}
        assert client.get("/api/v1/server", headers=page).status_code == 200


def test_the_page_itself_is_not_refused(served: Served) -> None:
    host = host_of(served)
    sent = message("GET", "/api/v1/server", host, b"", f"Origin: http://{host}", "Sec-Fetch-Site: same-origin")
    assert exchanged(served, sent, is_half=False).startswith(b"HTTP/1.1 200")
    local = message("GET", "/api/v1/server", f"localhost:{served.port}")
    assert exchanged(served, local, is_half=False).startswith(b"HTTP/1.1 200")


def test_every_answer_has_a_policy_without_inline_script(client: httpx.Client) -> None:
    for path in ("/healthz", "/api/v1/server", "/nothing", "/web/nothing.js", "/v1/models"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_browser_cannot_send_jobs_with_a_plain_form(client: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = client.post("/api/v1/jobs", content=b'{"request":{"steps":1}}', headers={"content-type": kind})
        assert answer.status_code in {400, 415, 422}, kind


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: Served) -> None:
    for path, size in (("/api/v1/jobs", 1 << 23), ("/api/v1/uploads", 1 << 26), ("/sdapi/v1/txt2img", 1 << 28)):
        sent = message("POST", path, host_of(served), b"{", length=size)
        began = time.monotonic()
        answer = exchanged(served, sent, is_half=False)
        assert answer.startswith(b"HTTP/1.1 413"), path
        assert time.monotonic() - began < 2
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = message("POST", "/api/v1/tokens", host_of(served), b"x").partition(b"Content-Length")[0]
    sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 80  # 5 MiB without saying so
    assert exchanged(served, sent, is_half=False).startswith(b"HTTP/1.1 413")


def test_connections_that_say_nothing_do_not_keep_others_waiting(served: Served) -> None:
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    try:
        for connection in silent[:50]:
            connection.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        times: list[float] = []
        with served.client() as client:
            for _ in range(50):
                began = time.monotonic()
                assert client.get("/healthz").status_code == 200
                times.append(time.monotonic() - began)
        assert sorted(times)[45] < 1.0
        silent[0].settimeout(20)
        assert silent[0].recv(100) == b"", "it is closed after ten seconds"
    finally:
        for connection in silent:
            connection.close()


def test_schemathesis_finds_no_server_error(served: Served) -> None:
    fuzz(served, 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_schemathesis_finds_no_server_error_in_many_tries(served: Served) -> None:
    operations, cases = fuzz(served, 150)
    recorded("G11 schemathesis", {"operations": operations, "cases": cases, "server errors": 0, "leaks": 0})


def fuzz(served: Served, tries: int) -> tuple[int, int]:
    """Every operation of our OpenAPI with so many generated requests, right and wrong ones; how many of both."""
    no_server_error: Any = not_a_server_error  # pyright: ignore[reportUnknownVariableType]  # Any: loosely typed
    raw: dict[str, Any] = httpx.get(f"{served.address}/openapi.json").json()  # Any: JSON
    assert raw["openapi"].startswith("3")
    schema: Any = schemathesis.openapi.from_dict(raw)  # Any: loosely typed
    seen = cases = 0
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # Any: loosely typed
        if operation.path in {"/api/v1/events", "/api/v1/models/{name}/load"}:
            continue  # a stream without end; a switch that would disturb the other tests
        seen += 1

        def run(case: Any) -> None:  # Any: loosely typed
            nonlocal cases
            cases += 1
            _small(case.body)
            response = case.call(base_url=served.address, timeout=30)
            if response.status_code not in {503}:
                case.validate_response(response, checks=[no_server_error])
            assert not leaks(response.content), response.content[:500]

        for mode in schemathesis.GenerationMode:
            test: Any = given(case=operation.as_strategy(generation_mode=mode))(run)  # Any: loosely typed
            phases = (Phase.explicit, Phase.generate)
            healthy: Any = list(HealthCheck)  # Any: loosely typed
            test = settings(
                max_examples=tries,
                derandomize=tries < 50,
                deadline=None,
                database=None,
                phases=phases,
                suppress_health_check=healthy,
            )(test)
            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong about a request without parameters
                test()
    assert seen > 40
    return seen, cases


MOST = {"width": 64, "height": 64, "steps": 1, "count": 1, "batch_size": 1, "n_iter": 1, "num_inference_steps": 1}


def _small(body: Any) -> None:  # Any: JSON
    """Requests that are right may be large: keep the engine free for others."""
    if isinstance(body, dict):
        fields = cast(dict[str, Any], body)  # Any: JSON
        for key, value in fields.items():
            if key in MOST and isinstance(value, int) and value > MOST[key]:
                fields[key] = MOST[key]
            _small(value)
    elif isinstance(body, list):
        for one in cast(list[Any], body):  # Any: JSON
            _small(one)


def test_an_address_is_seen_outside_of_pictures_and_ids_only() -> None:
    picture = b"A" * 40 + b"0x7f" + b"B" * 40
    assert leaks(b'{"b64_json": "' + picture + b'", "id": "p_j8vap6c60x7fwt9c"}') == []
    assert leaks(b'{"b64_json": "' + picture + b'", "detail": "<object at 0x7f31>"}') == [b"0x7f"]


def test_an_answer_that_is_cut_short_is_seen() -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5"
    assert is_whole(head, b"wrong")
    assert is_whole(head, b"", is_head=True)
    assert not is_whole(head, b"wron")
    assert not is_whole(head, b"")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
    assert is_whole(chunked, b"1\r\nx\r\n0\r\n\r\n")
    assert not is_whole(chunked, b"1\r\nx\r\n")
