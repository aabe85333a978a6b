"""The HTTP application: dialects, page, health, and one place where exceptions become answers. No torch.

app = application(hub, Access(hosts=own_hosts("127.0.0.1", 8000)))
"""

import hashlib
import json
import mimetypes
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any  # Any: JSON

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mezzotint.errors import MezzotintError
from mezzotint.serve.dialects import a1111, hf, native, openai
from mezzotint.serve.guard import Access, Guard, spoken
from mezzotint.serve.hub import Hub, KeyReused, Unavailable
from mezzotint.serve.queue import Full

CODES = {
    400: "wrong_request",
    401: "key_needed",
    403: "foreign_origin",
    404: "not_found",
    405: "wrong_method",
    408: "too_slow",
    409: "busy",
    413: "too_large",
    415: "wrong_type",
    422: "wrong_request",
    429: "queue_full",
    503: "loading",
}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml"}


def application(hub: Hub, access: Access, *, is_drained_elsewhere: bool = False) -> FastAPI:
    """The server around a hub. `is_drained_elsewhere`: whoever runs it has waited for its jobs when it stops."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None]:
        hub.open()
        try:
            yield
        finally:
            if not is_drained_elsewhere:
                await hub.drain(0)
            await hub.close()

    app = FastAPI(
        title="mezzotint",
        version=version("mezzotint"),
        description="Pictures from words. See docs/reference/http.md.",
        lifespan=life,
        default_response_class=Plain,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        exception_handlers={
            RequestValidationError: _invalid,
            HTTPException: _refused,
            MezzotintError: _wrong,
            Full: _full,
            Unavailable: _unavailable,
            KeyReused: _reused,
        },
    )
    app.state.hub, app.state.access = hub, access
    for dialect in (native, openai, a1111, hf):
        app.include_router(dialect.router)
    app.add_api_route("/healthz", _healthy, methods=["GET"], tags=["operation"])
    app.add_api_route("/readyz", _ready, methods=["GET"], tags=["operation"], responses={503: {}})
    app.add_api_route("/metrics", _metrics, methods=["GET"], tags=["operation"])
    page = Page()
    app.add_api_route("/", page.index, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/web/{name:path}", page.file, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_middleware(Guard, access=access)
    return app


class Plain(JSONResponse):
    """JSON in ASCII: whatever a client's text was made of, it can be sent."""

    def render(self, content: Any) -> bytes:  # Any: JSON
        """The body."""
        return json.dumps(content).encode()


class Page:
    """The files of the page, read once: what is not among them does not exist."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(str(resources.files("mezzotint"))) / "web"
        found = sorted(folder.rglob("*")) if folder.is_dir() else []
        self._files = {
            path.relative_to(folder).as_posix(): path
            for path in found
            if path.is_file() and path.suffix != ".py" and not path.name.startswith(".")
        }
        self._read: dict[str, tuple[bytes, str, str]] = {}

    async def index(self, request: Request) -> Response:
        """The page itself."""
        return self._answer("index.html", request)

    async def file(self, name: str, request: Request) -> Response:
        """A file of the page."""
        return self._answer(name, request)

    def _answer(self, name: str, request: Request) -> Response:
        path = self._files.get(name)
        if path is None:
            raise HTTPException(404, "there is no such page")
        if name not in self._read:
            data = path.read_bytes()
            kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self._read[name] = data, kind, f'"{hashlib.sha256(data).hexdigest()[:20]}"'
        data, kind, tag = self._read[name]
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)


def _healthy() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


def _ready(request: Request) -> Response:
    """Whether it takes jobs: a model is loaded and the engine is there."""
    state = request.app.state.hub.state
    return Plain({"status": state}, 200 if state == "ready" else 503)


def _metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.hub.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _problem(
    request: Request, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    path = request.url.path
    kind = "application/problem+json" if path.startswith("/api/") else "application/json"
    body = spoken(path, status, code, detail, str(request.scope.get("state", {}).get("request_id", "")))
    return Plain(body, status, dict(headers or {}), kind)


async def _invalid(request: Request, error: Exception) -> Response:
    """A body or parameter that the schema does not allow, in one sentence."""
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "").partition(";")[0]
    if any(one["loc"] == ("body",) and isinstance(one["input"], bytes) for one in error.errors()):
        detail = f"the body is read with 'Content-Type: application/json' only (found {kind[:60] or 'none'!r})"
        return _problem(request, 415, "wrong_type", detail)
    lines: list[str] = []
    for one in error.errors()[:10]:
        details: dict[str, Any] = dict(one)  # Any: what pydantic says
        if details["type"] == "json_invalid":
            lines.append(f"the body is not JSON: {details['ctx']['error']}, at character {details['loc'][-1]}"[:300])
            continue
        where = ".".join(str(part) for part in details["loc"][1:] if "[" not in str(part))[:200]
        said = str(details["msg"]).replace("Input should", "must")[:300]
        said = said.replace("a valid dictionary or object to extract fields from", "an object")
        lines.append(f"{where}: {said}" if where else f"the body {said}")
    return _problem(request, 400, "wrong_request", "; ".join(lines) or "the request cannot be read")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, detail = CODES.get(error.status_code, "failed"), str(error.detail)
    if detail == "Not Found":  # the framework's own word for a path that no route has
        detail = "there is no such path here; GET /openapi.json lists those that there are"
    return _problem(request, error.status_code, code, detail, error.headers)


async def _wrong(request: Request, error: Exception) -> Response:
    return _problem(request, 400, "wrong_request", str(error))


async def _full(request: Request, error: Exception) -> Response:
    assert isinstance(error, Full)
    detail = f"too much is waiting already; try again in {error.retry_after} s"
    return _problem(request, 429, "queue_full", detail, {"retry-after": str(error.retry_after)})


async def _unavailable(request: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)
    status = 409 if error.code == "busy" else 503
    return _problem(request, status, error.code, error.detail, {"retry-after": str(error.retry_after)})


async def _reused(request: Request, error: Exception) -> Response:
    return _problem(request, 422, "key_reused", "this idempotency key came with another body before")
