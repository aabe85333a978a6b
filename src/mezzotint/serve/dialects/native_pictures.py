"""Pictures of the native API: the gallery, uploads, and how a picture from elsewhere was made."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from mezzotint.serve.client import Id, body_bytes, hub_of
from mezzotint.serve.foreign import explained
from mezzotint.serve.hub import Hub
from mezzotint.serve.ids import ID_PATTERN
from mezzotint.serve.thumbs import given
from mezzotint.serve.works import links

router = APIRouter()


@router.get("/images")
async def images(
    request: Request,
    q: Annotated[str, Query(max_length=1000)] = "",
    model: Annotated[str | None, Query(max_length=200)] = None,
    sampler: Annotated[str | None, Query(max_length=64)] = None,
    before: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 60,
) -> dict[str, Any]:  # Any: JSON
    """The gallery, newest first."""
    hub = hub_of(request)
    words = q.encode("utf-8", "replace").decode()
    found = await hub.on_disk(lambda: hub.store.search(words, model=model, sampler=sampler, before=before, limit=limit))
    entries = await hub.on_disk(lambda: [_entry(hub, row) for row in found.pictures])
    return {"images": entries, "next": found.next, "total": found.total}


@router.get("/images/{name}")
async def image(name: Id, request: Request) -> dict[str, Any]:  # Any: JSON
    """All that is known of a picture."""
    hub = hub_of(request)
    row = await hub.on_disk(lambda: hub.store.picture(name))
    png = await hub.on_disk(lambda: hub.store.picture_bytes(name))
    if row is None or png is None:
        raise HTTPException(404, f"there is no picture {name!r}")
    told = await asyncio.to_thread(explained, png)
    record: dict[str, Any] = told.record or {}  # Any: JSON

    def here(fields: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        for key in ("image", "mask", "reference"):
            if fields.get(key) and (found := hub.store.id_of_content(str(fields[key].get("sha256")))):
                fields[key] = {"upload": found}
        return fields

    return {
        **await hub.on_disk(lambda: _entry(hub, row)),
        "request": await hub.on_disk(lambda: here(told.request or {})),
        "asked": record.get("request", {}),
        "infotext": told.infotext,
        "record": record,
    }


@router.get("/images/{name}/file", response_class=Response)
async def image_file(name: Id, request: Request, download: bool = False) -> Response:
    """The picture."""
    hub = hub_of(request)
    return _picture(request, name, await hub.on_disk(lambda: hub.store.picture_bytes(name)), download=download)


@router.get("/images/{name}/thumb", response_class=Response)
async def image_thumb(name: Id, request: Request) -> Response:
    """The picture, small."""
    hub = hub_of(request)
    return _picture(request, name, await hub.on_disk(lambda: hub.store.thumb_bytes(name)), kind="image/webp")


@router.delete("/images/{name}", status_code=204)
async def delete_image(name: Id, request: Request) -> Response:
    """No such picture any more."""
    hub = hub_of(request)
    if not await hub.on_disk(lambda: hub.store.delete_picture(name)):
        raise HTTPException(404, f"there is no picture {name!r}")
    return Response(status_code=204)


_RAW = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}


@router.post("/uploads", status_code=201, openapi_extra=_RAW)
async def upload(request: Request) -> dict[str, Any]:  # Any: JSON
    """Keep a picture for requests."""
    hub = hub_of(request)
    data = await body_bytes(request)
    taken = await asyncio.to_thread(given, data)
    made = await hub.on_disk(lambda: hub.store.add_upload(taken.png))
    return {**made, "url": f"/api/v1/uploads/{made['id']}"}


@router.get("/uploads/{name}", response_class=Response)
async def upload_file(name: Id, request: Request) -> Response:
    """A picture that was uploaded."""
    hub = hub_of(request)
    found = await hub.on_disk(lambda: hub.store.source_bytes(name)) if name.startswith("u_") else None
    return _picture(request, name, found)


@router.post("/inspect", openapi_extra=_RAW)
async def inspect(request: Request) -> dict[str, Any]:  # Any: JSON
    """How a picture was made, by whatever program."""
    data = await body_bytes(request)
    told = await asyncio.to_thread(explained, data)
    return {
        "source": told.source,
        "width": told.width,
        "height": told.height,
        "infotext": told.infotext,
        "request": told.request,
        "model": told.model,
        "ignored": told.ignored,
        "warnings": told.warnings,
    }


def _entry(hub: Hub, row: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """A picture as the gallery lists it."""
    hidden = ("kept", "sha256", "parents")
    parents = [hub.store.id_of_content(digest) for digest in json.loads(row["parents"])]
    shown = {key: value for key, value in row.items() if key not in hidden}
    return {**shown, "parents": [name for name in parents if name], **links(row["id"])}


def _picture(
    request: Request, name: str, data: bytes | None, *, kind: str = "image/png", download: bool = False
) -> Response:
    if data is None:
        raise HTTPException(404, f"there is no picture {name!r}")
    tag = f'"{name}"'
    headers = {"etag": tag, "cache-control": "private, max-age=31536000, immutable"}
    if download:
        headers["content-disposition"] = f'attachment; filename="{name}.png"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
