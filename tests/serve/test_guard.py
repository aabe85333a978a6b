"""Who may ask: own names, own pages, the key in each of its forms."""

import asyncio
import base64
import socket
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from mezzotint.errors import RequestError
from mezzotint.serve import guard
from mezzotint.serve.guard import Access, Guard, is_loopback, own_hosts
from mezzotint.serve.run import Place, serve
from serve.conftest import Sleepers


def test_only_its_own_names_are_its_own():
    access = Access(hosts=own_hosts("127.0.0.1", 8000), port=8000)
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "LOCALHOST:8000"):
        assert access.is_own(host), host
    for host in (
        "",
        "127.0.0.1",
        "127.0.0.1:80",
        "evil:8000",
        "localhost:8000.evil",
        "127.0.0.2:8000",
        "a@localhost:8000",
    ):
        assert not access.is_own(host), host


def test_a_public_server_knows_its_addresses_and_the_names_that_it_was_told():
    access = Access(key="k", hosts=own_hosts("0.0.0.0", 8000, ["pictures.example"]), port=8000, is_public=True)
    for host in ("pictures.example", "192.168.1.5:8000", "[fe80::1]:8000", "10.0.0.1", "127.0.0.1:8000"):
        assert access.is_own(host), host
    for host in ("rebound.evil:8000", "192.168.1.5:81", "192.168.1.5.evil:8000", "0x7f.1:8000"):
        assert not access.is_own(host), host


def test_what_only_this_machine_can_reach():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))


def test_the_key_in_each_of_its_forms():
    access = Access(key="schlüssel")
    basic = base64.b64encode("anyone:schlüssel".encode()).decode()
    for line in ("Bearer schlüssel", f"Basic {basic}", "bearer schlüssel"):
        assert access.knows({"authorization": line}), line
    assert access.knows({"cookie": f"a=b; mezzotint_session={access.token()}"})
    for line in ("", "Bearer", "Bearer schlüsse", "Basic !!!", f"Basic {basic[:-4]}", "Digest schlüssel", "schlüssel"):
        assert not access.knows({"authorization": line}), line
    assert not access.knows({"cookie": "mezzotint_session=schlüssel"})
    assert not access.knows({"cookie": f"mezzotint_session={Access(key='schlüssel').token()}"}), "of another life"
    assert "schlüssel" not in access.token()


@pytest.mark.parametrize("host", ["localhost:8000", "evil:8000"])
def test_a_connection_that_takes_no_answer_is_no_error(host: str, caplog: pytest.LogCaptureFixture):
    """Whoever goes on with what is no HTTP spoils the connection under the answer, also under a refusal."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise AssertionError("it went on")

    async def spoilt(_: Message) -> None:
        raise RuntimeError("can't handle event type Response when role=SERVER and state=ERROR")

    async def silent() -> Message:
        return {"type": "http.request", "body": b""}

    headers = [(b"host", host.encode())]
    scope: Scope = {"type": "http", "path": "/api/v1/jobs", "method": "GET", "headers": headers, "query_string": b""}
    guard = Guard(application, Access(hosts=own_hosts("127.0.0.1", 8000), port=8000))
    with caplog.at_level("INFO"):
        asyncio.run(guard(scope, silent, spoilt))
    assert [record.levelname for record in caplog.records if record.name.endswith("guard")] == ["INFO"]


def test_a_public_address_without_a_key_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match="can be reached from other machines: give a key"):
        serve(Place(host="0.0.0.0", gallery=tmp_path), print)
    assert not list(tmp_path.iterdir())


def test_everything_but_health_and_the_page_wants_the_key(sleeper: Sleepers):
    sleeping = sleeper(key="right")
    with httpx.Client(base_url=sleeping.address) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/web/nothing.js").status_code == 404
        described = client.get("/openapi.json", headers={"authorization": "Bearer right"}).json()
        paths: dict[str, dict[str, object]] = described["paths"]
        assert len(paths) > 40
        routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        assert {method for method, _ in routes} >= {"GET", "POST", "DELETE"}
        for method, path in routes:
            if path in {"/healthz", "/readyz", "/api/v1/session", "/v1/files/{name}"}:
                continue
            answer = client.request(method, path.replace("{name}", "p_00000000000000000000000000"))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"]
        assert client.post("/api/v1/session", json={"key": "wrong"}).status_code == 401
        answer = client.post("/api/v1/session", json={"key": "right"})
        assert answer.status_code == 204
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "SameSite=strict" in answer.headers["set-cookie"]
        assert "right" not in answer.headers["set-cookie"]
        assert "Secure" not in answer.headers["set-cookie"]  # over plain HTTP a browser would not send it back
        proxied = {"x-forwarded-proto": "https"}
        secured = httpx.post(f"{sleeping.address}/api/v1/session", json={"key": "right"}, headers=proxied)
        assert "Secure" in secured.headers["set-cookie"]
        assert client.get("/api/v1/server").json()["needs_key"] is True  # with the cookie
        assert client.delete("/api/v1/session").status_code == 204
        assert client.get("/api/v1/server").status_code == 401


LATE = [  # and how each body begins
    ("/api/v1/jobs", "application/json", "{"),
    ("/sdapi/v1/txt2img", "application/json", "{"),
    ("/hf/text-to-image", "application/json", "{"),
    ("/v1/images/edits", "multipart/form-data; boundary=x", "--x"),
    ("/api/v1/uploads", "image/png", "x"),
]


@pytest.mark.parametrize(("path", "kind", "begun"), LATE)
def test_a_body_that_does_not_arrive_is_told_so_on_every_kind_of_route(
    path: str, kind: str, begun: str, sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(guard, "BODY_S", 0.2)
    address = sleeper().address
    host = address.removeprefix("http://")
    name, _, port = host.partition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: 50\r\n\r\n{begun}"
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(1 << 16):  # until it is closed
            answer += part
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 408 "), answer
    assert "too_slow" in body
    assert "the body did not arrive in 0.2 s" in body
