"""What stands before every route: who may ask, from where, how much; and what every answer says of itself.

Plain ASGI, because a middleware that wraps requests hides from handlers that their client has gone. The network is
untrusted; a browser that visits other sites is part of it, so Host and Origin are compared exactly.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any  # Any: what ASGI passes around

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "mezzotint_session"
BODY_S = 60.0  # for a body to arrive
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = frozenset({"/healthz", "/readyz", "/api/v1/session"})  # answered without the key
OPEN_BELOW = ("/web/", "/v1/files/")  # the page's own files; files whose address cannot be guessed
LIMITS = {  # bytes of a body, by the beginning of the path
    "/api/v1/uploads": 1 << 25,
    "/api/v1/inspect": 1 << 25,
    "/api/": 1 << 22,
    "/sdapi/": 1 << 27,
    "/v1/": 1 << 27,
    "/hf/": 1 << 26,
}
SMALLEST = 1 << 16
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
}

log = logging.getLogger(__name__)


class TooLarge(HTTPException):
    """A body is larger than its route takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"a body of at most {limit} bytes is taken here")


class TooSlow(HTTPException):
    """A body has not arrived in time. What may still come of it is not read."""

    def __init__(self) -> None:
        super().__init__(408, f"the body did not arrive in {BODY_S:g} s", {"connection": "close"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Who may ask. `hosts` are the values of Host that are the server's own, in lower case, with port."""

    key: str | None = None
    hosts: frozenset[str] = frozenset()
    port: int = 0
    is_public: bool = False  # then addresses are own hosts, too: a name that is rebound is none
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server."""
        host = host.lower()
        if host in self.hosts:
            return True
        if not self.is_public:
            return False
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not name:
            name, port = host, ""
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return port in ("", str(self.port))

    def token(self) -> str:
        """What a cookie holds in place of the key."""
        return hmac.new(self.secret, (self.key or "").encode(), hashlib.sha256).hexdigest()

    def admits(self, key: str) -> bool:
        """Whether this is the key."""
        return self.key is None or hmac.compare_digest(self.key.encode(), key.encode())

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request brings the key, or the cookie that was given for it."""
        if self.key is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.admits(value.strip()):
            return True
        if kind.lower() == "basic" and self.admits(_password(value)):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.token().encode())


def own_hosts(host: str, port: int, more: Iterable[str] = ()) -> frozenset[str]:
    """Every Host header that means the server at this address."""
    names = {"127.0.0.1", "localhost", "[::1]"}
    if host not in {"127.0.0.1", "localhost", "::1"}:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower(), f"[{host}]" if ":" in host else host}
    named = {name if port in (80, 443) else f"{name}:{port}" for name in names} | {f"{name}:{port}" for name in names}
    return frozenset(named | {name.lower() for name in more})


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Unsendable(Exception):
    """The connection takes no answer: somebody hung up, or went on with what is no HTTP."""


class Guard:
    """Checks, counts and labels; then the application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":  # there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = name
        try:
            await self._answered(scope, receive, _Sender(send, name), name)
        except Unsendable as error:
            log.info("request %s: its connection takes no answer: %s", name, error.__cause__)

    async def _answered(self, scope: Scope, receive: Receive, sender: "_Sender", name: str) -> None:
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            status, code, detail = refusal
            await answer(scope, sender, status, code, detail)
            return
        limit = next((size for start, size in LIMITS.items() if scope["path"].startswith(start)), SMALLEST)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            await answer(scope, sender, 413, "too_large", f"a body of at most {limit} bytes is taken here")
            return
        try:
            await self.app(scope, _Counted(receive, limit), sender)
        except ClientDisconnect:
            log.info("request %s: its client has gone", name)  # nobody is there to answer
        except Unsendable:
            raise
        except Exception:
            log.exception("request %s failed", name)
            if not sender.has_begun:
                await answer(scope, sender, 500, "failed", f"something went wrong; the log has it under {name}")

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        path, method = scope["path"], scope["method"]
        if sum(key == b"host" for key, _ in scope["headers"]) != 1 or not self.access.is_own(headers["host"]):
            return 403, "foreign_host", "this server is not the host that was asked for; start it with --allow-host"
        if "transfer-encoding" in headers and "content-length" in headers:
            return 400, "wrong_request", "a body has a length or comes in chunks, not both"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"{s}://{headers['host'].lower()}" for s in ("http", "https")}:
            return 403, "foreign_origin", "pages of other sites may not use this server"
        if headers.get("sec-fetch-site", "none") not in {"same-origin", "none"} and not (
            method in SAFE and headers.get("sec-fetch-mode") == "navigate" and path == "/"
        ):
            return 403, "foreign_origin", "pages of other sites may not use this server"
        is_open = path in OPEN or path == "/" or path.startswith(OPEN_BELOW)
        if not is_open and not self.access.knows(headers):
            return 401, "key_needed", "send the key of this server as a bearer token, or as the password of basic auth"
        return None


async def answer(scope: Scope, send: Send, status: int, code: str, detail: str, retry_after: int | None = None) -> None:
    """An error in the words of the dialect that was asked."""
    body = json.dumps(spoken(scope["path"], status, code, detail, _name(scope))).encode()
    kind = b"application/problem+json" if scope["path"].startswith("/api/") else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="mezzotint"' if "/sdapi/" in scope["path"] else b"Bearer"))
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    if status in {400, 413}:  # what is still under way is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def spoken(path: str, status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:  # Any: JSON
    """An error as clients of this path expect it."""
    if path.startswith("/v1/"):
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": detail, "type": kind, "param": None, "code": code}}
    if path.startswith("/sdapi/"):
        return {"error": code, "detail": detail, "body": "", "errors": detail}
    if path.startswith("/hf/"):
        return {"error": detail, "error_type": code}
    title = code.replace("_", " ")
    return {"title": title, "status": status, "code": code, "detail": detail, "request_id": request_id}


class _Sender:
    """Adds the headers that every answer has."""

    def __init__(self, send: Send, name: str) -> None:
        self._send, self._name = send, name
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            given = {key.lower() for key, _ in message.get("headers", ())}
            more = {**HEADERS, "x-request-id": self._name}
            if b"cache-control" not in given:
                more["cache-control"] = "no-store"
            added = [(k.encode(), v.encode()) for k, v in more.items() if k.encode() not in given]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        try:
            await self._send(message)
        except Exception as error:  # of whatever server this runs under
            raise Unsendable from error


class _Counted:
    """Counts the bytes of a body and the time that it takes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._left = receive, limit, limit
        self._until = time.monotonic() + BODY_S
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
            if self._left < 0:
                raise TooLarge(self._limit)
        return message


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _name(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", ""))
