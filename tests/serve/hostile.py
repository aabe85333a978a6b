"""Requests that nobody well-meaning sends, as raw bytes: drawn from a seed, so that any of them can be sent again.

python -m pytest tests/serve/test_hostile.py        some hundred of them
python -m pytest tests/serve/test_hostile.py -m slow        five thousand
"""

import io
import json
import random
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from PIL import Image

from mezzotint.images import encode

NOBODY = "p_00000000000000000000000000"
GIANTS = (
    *("1e999", "-1", "0", "99999999999999999999", "1" + "0" * 400, "NaN", "Infinity", "-Infinity", "1e-400", "true"),
    *('"9"', "null", "[]", "{}", "0.5", "4294967296", "-9223372036854775809", '""', "[1,2,3]", '"\\ud800"'),
)
NUMBERS = (
    *("steps", "seed", "width", "height", "count", "guidance", "guidance_rescale", "feather", "clip_skip", "crop"),
    *("canvas", "original_size", "aesthetic", "strength", "reference_noise", "guidance_interval", "options"),
)
TEXTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "<svg/onload=alert(1)>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "'; DROP TABLE pictures; --",
    "\u202e\u0000\u0007\ufeff\uffff",
    "<|endoftext|><|startoftext|>",
    "A" * 20001,
    "\n\nid: 99\nevent: done\ndata: {}\n\n",
    "a fox\r\nSet-Cookie: x=1\r\n\r\n",
    "%s%n%x" * 20,
    "../../etc/passwd",
    "🦊" * 3000,
    "(((((((((((" * 300,
    "<lora:../../../x:1>",
    "\\" * 999,
)
STEPS = (
    "../",
    "..\\",
    "%2e%2e%2f",
    "%252e%252e%252f",
    "..%c0%af",
    "..%2f",
    "%2e%2e/",
    "....//",
    "/",
    "//",
    "\\\\host\\",
    *("C:\\", "file:///", "%00", ".%00./", "\u2025/", "%e2%80%a5/", "./../", "..;/"),
)
TARGETS = ("canary.png", "etc/passwd", "index.sqlite3", "pyproject.toml", "proc/self/environ", "canary.png%00.png")
FILES = (
    *("/api/v1/images/{}", "/api/v1/images/{}/file", "/api/v1/images/{}/thumb", "/api/v1/uploads/{}", "/web/{}"),
    *("/v1/files/{}", "/v1/models/{}", "/api/v1/jobs/{}", "/api/v1/jobs/{}/events", "/api/v1/models/{}", "/{}"),
)
HOSTS = (
    "evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1:1",
    "localhost",
    "",
    "127.0.0.1@evil",
    "[::ffff:7f00:1]",
    "0",
)
ORIGINS = (
    "null",
    "http://evil.example",
    "https://127.0.0.1",
    "http://localhost.evil.example",
    "file://",
    "http://127.0.0.1",
)
ROUTES = (
    "/api/v1/jobs",
    "/api/v1/estimate",
    "/api/v1/tokens",
    "/api/v1/session",
    "/sdapi/v1/txt2img",
    "/v1/images/edits",
    "/sdapi/v1/img2img",
    "/sdapi/v1/png-info",
    "/v1/images/generations",
    "/hf/text-to-image",
    "/hf/image-to-image",
    "/sdapi/v1/options",
    "/sdapi/v1/extra-single-image",
    "/internal/progress",
    "/api/v1/uploads",
    "/api/v1/inspect",
)


class Hostile(NamedTuple):
    """What is sent, and whether the connection is then left hanging (half a body) instead of waiting for an answer."""

    name: str
    sent: bytes
    is_half: bool = False


def requests(host: str, count: int, seed: int) -> Iterator[Hostile]:
    """So many of them, of all sorts in turn; `host` is what the server calls itself."""
    chance = random.Random(seed)
    kinds: list[Callable[[random.Random, str], Hostile]] = [
        traversal, foreign, giants, texts, uploads, framing, forms, headers, nonsense, dialects,
    ]  # fmt: skip
    for number in range(count):
        kind = kinds[number % len(kinds)]
        found = kind(chance, host)
        yield found._replace(name=f"{number} {kind.__name__}: {found.name}")


def message(
    method: str, path: str, host: str, body: bytes = b"", *lines: str, kind: str = "application/json", length: int = -1
) -> bytes:
    """A request as it goes over the wire; path and header lines as they are given."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "Connection: close"]
    if body or length >= 0 or method in {"POST", "PUT", "PATCH"}:
        head += [f"Content-Type: {kind}", f"Content-Length: {len(body) if length < 0 else length}"]
    return "\r\n".join(head).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def traversal(chance: random.Random, host: str) -> Hostile:
    step, target = chance.choice(STEPS), chance.choice(TARGETS)
    name = step * chance.randrange(1, 9) + target
    if chance.random() < 0.1:
        name += chance.choice((".", " ", "%20", "/", "?", "#", "A" * 4096))
    path = chance.choice(FILES).format(name.replace(" ", "%20"))
    method = chance.choice(("GET", "GET", "DELETE", "HEAD"))
    if chance.random() < 0.2:
        body = json.dumps({"request": {"image": {"upload": name}, "prompt": name}}).encode()
        return Hostile(f"upload id {name[:40]!r}", message("POST", "/api/v1/jobs", host, body))
    return Hostile(f"{method} {path[:60]}", message(method, path, host))


def foreign(chance: random.Random, host: str) -> Hostile:
    body = b'{"request":{"steps":1}}'
    method = chance.choice(("POST", "DELETE"))
    path = "/api/v1/jobs" if method == "POST" else chance.choice(("/api/v1/jobs", f"/api/v1/images/{NOBODY}"))
    how = chance.randrange(5)
    if how == 0:
        wrong = chance.choice(HOSTS)
        return Hostile(f"host {wrong!r}", message(method, path, wrong, body))
    if how == 1:
        return Hostile("two hosts", message(method, path, host, body, "Host: evil.example"))
    if how == 2:
        return Hostile("no host", message(method, path, host, body).replace(f"Host: {host}\r\n".encode(), b""))
    if how == 3:
        site = chance.choice(("cross-site", "same-site"))
        return Hostile(f"fetch site {site}", message(method, path, host, body, f"Sec-Fetch-Site: {site}"))
    origin = chance.choice(ORIGINS)
    kind = chance.choice(("application/json", "text/plain", "application/x-www-form-urlencoded"))
    return Hostile(f"origin {origin!r}", message(method, path, host, body, f"Origin: {origin}", kind=kind))


def giants(chance: random.Random, host: str) -> Hostile:
    field, value = chance.choice(NUMBERS), chance.choice(GIANTS)
    if chance.random() < 0.2:
        value = f"[{value},{chance.choice(GIANTS)}]"
    if field == "options":
        value = f'{{"{chance.choice(("eta", "s_churn", "order", "r", "s_noise"))}": {value}}}'
    body = f'{{"request":{{"prompt":"x","steps":1,"sampler":"euler","{field}":{value}}}}}'.encode()
    return Hostile(f"{field}: {value[:30]}", message("POST", chance.choice(ROUTES[:2]), host, body))


def texts(chance: random.Random, host: str) -> Hostile:
    text = chance.choice(TEXTS)
    if chance.random() < 0.3:
        text = "".join(chr(chance.choice((chance.randrange(32), chance.randrange(0xD7FF)))) for _ in range(50))
    key = chance.choice(("prompt", "negative", "sampler", "spacing"))
    body = json.dumps({"request": {"steps": 1, "seed": 1, key: text}}, ensure_ascii=chance.random() < 0.5).encode()
    if chance.random() < 0.3:
        return Hostile("tokens", message("POST", "/api/v1/tokens", host, json.dumps({"text": text}).encode()))
    return Hostile(f"{key} {text[:30]!r}", message("POST", "/api/v1/jobs", host, body))


def uploads(chance: random.Random, host: str) -> Hostile:
    name, data = chance.choice(_pictures(chance))
    path = chance.choice(("/api/v1/uploads", "/api/v1/inspect", "/hf/image-to-image"))
    kind = chance.choice(("image/png", "image/svg+xml", "text/html", "application/octet-stream"))
    if chance.random() < 0.3:
        text = b64encode(data).decode()
        body = json.dumps({"image": text, "init_images": [text], "inputs": text, "prompt": "x", "steps": 1}).encode()
        route = chance.choice(("/sdapi/v1/png-info", "/sdapi/v1/img2img", "/hf/image-to-image"))
        return Hostile(f"base64 {name}", message("POST", route, host, body))
    return Hostile(name, message("POST", path, host, data, kind=kind))


def framing(chance: random.Random, host: str) -> Hostile:
    body = b'{"request":{"steps":1,"prompt":"x"}}'
    path = chance.choice(ROUTES)
    head = message("POST", path, host, body).partition(b"\r\n\r\n")[0].rpartition(b"\r\nContent-Length")[0]
    sorts = (
        ("half a body", message("POST", path, host, body, length=len(body) + 100), True),
        ("a body of 1 GiB is announced", message("POST", path, host, body, length=1 << 30), False),
        ("negative length", message("POST", path, host, body).replace(b"Length: ", b"Length: -"), False),
        ("two lengths", message("POST", path, host, body, "Content-Length: 1"), False),
        ("length and chunks", message("POST", path, host, body, "Transfer-Encoding: chunked"), False),
        ("one byte a chunk", head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunks(body) + b"0\r\n\r\n", False),
        ("half a chunk", head + b"\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{", True),
        ("a chunk of no size", head + b"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", False),
        ("half a head", b"POST /api/v1/jobs HTTP/1.1\r\nHost: ", True),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00" + chance.randbytes(100), True),
        ("HTTP 0.9", b"GET /\r\n\r\n", False),
        ("two in one", message("GET", "/healthz", host).replace(b"Connection: close\r\n", b"") * 2, True),
        ("a blank in the name", message("POST", path, host, body, "X Y: 1"), False),
        ("an upgrade", message("GET", "/", host, b"", "Upgrade: websocket", "Sec-WebSocket-Key: x"), False),
    )
    return Hostile(*chance.choice(sorts))


def forms(chance: random.Random, host: str) -> Hostile:
    picture = encode(Image.new("RGB", (16, 16)))
    parts = chance.choice((1, 2, 50, 10000))
    name = chance.choice(("../../canary.png", "x.php", "a\r\nb", "\x00", '"; x="', "CON", "x" * 5000, "x.png"))
    boundary = chance.choice(("b", "-" * 60, "b\x00", ""))
    field = chance.choice(("image", "image[]", "mask", "prompt", "n", "size", "__proto__"))
    lead = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    body = (lead.encode() + picture[: chance.choice((10, 10**6))] + b"\r\n") * (1 if parts > 50 else parts)
    if parts > 50:
        small = f'--{boundary}\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n'.encode()
        body += small * parts
    if chance.random() < 0.7:
        body += f"--{boundary}--\r\n".encode()
    path = chance.choice(("/v1/images/edits", "/v1/images/variations"))
    return Hostile(
        f"{field} {name[:20]!r} x{parts}",
        message("POST", path, host, body, kind=f"multipart/form-data; boundary={boundary}"),
    )


def headers(chance: random.Random, host: str) -> Hostile:
    path = chance.choice(("/", "/api/v1/images", f"/api/v1/images/{NOBODY}/file", "/metrics", "/api/v1/jobs"))
    line = chance.choice(
        (
            "Range: bytes=" + ",".join(f"{i}-" for i in range(12000)),
            "Range: bytes=" + "0-" * 30000,
            "X-Long: " + "a" * 60000,
            "Cookie: mezzotint_session=" + "a" * 1000,
            "Cookie: " + "=;" * 2000,
            "Authorization: Basic " + "=" * 100,
            "Authorization: Bearer \xff\xfe",
            "Last-Event-ID: 99999999999999999999999999",
            "Last-Event-ID: \u00b2",
            "Idempotency-Key: " + "k" * 5000,
            "Idempotency-Key: ../../x",
            "If-None-Match: " + '"' * 1000,
            "X-Forwarded-Host: evil.example",
            "Forwarded: host=evil.example",
            "Content-Encoding: gzip",
            "Expect: 100-continue",
            "Accept: " + "a/" * 3000,
            "\r\nGET /etc/passwd HTTP/1.1",
        )
    )
    body = b'{"request":{"steps":1}}' if path == "/api/v1/jobs" else b""
    return Hostile(line[:50], message("POST" if body else "GET", path, host, body, line))


def nonsense(chance: random.Random, host: str) -> Hostile:
    path = chance.choice(ROUTES)
    sorts = (
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"null",
        b"[]",
        b'"x"',
        b"{}" * 100,
        b'{"request":[]}',
        b'{"requests":' + b"[{}," * 300,
        json.dumps({"requests": [{}] * 300}).encode(),
        json.dumps({"requests": [{"steps": 1}], "model": "../../x"}).encode(),
        json.dumps({"__proto__": {"x": 1}, "prompt": {"$gt": ""}}).encode(),
        json.dumps({"prompt": "x", "steps": 1, "k" * 10000: 1}).encode(),
        "\ufeff{}".encode("utf-16"),
        chance.randbytes(300),
        b'{"prompt":"\xff\xfe"}',
        b'{"prompt":"\\ud800","inputs":"\\ud800","text":"\\ud800","request":{"prompt":"\\ud800"}}',
    )
    method = chance.choice(("POST", "POST", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "FOO"))
    data = chance.choice(sorts)
    return Hostile(f"{method} {path} {data[:30]!r}", message(method, path, host, data))


def dialects(chance: random.Random, host: str) -> Hostile:
    value = json.loads(chance.choice([one for one in GIANTS if one not in {"NaN", "Infinity", "-Infinity"}]))
    text = chance.choice(TEXTS)
    small = {"steps": 1, "width": 64, "height": 64}
    pasted = f"x\nSteps: {value}, Seed: {value}, Size: 9x9"
    sorts = (
        ("/sdapi/v1/txt2img", {**small, "prompt": text, "cfg_scale": value}),
        ("/sdapi/v1/txt2img", {**small, "infotext": text, "override_settings": {"a": value}}),
        ("/sdapi/v1/txt2img", {**small, "infotext": pasted}),
        ("/sdapi/v1/txt2img", {**small, "width": value, "batch_size": value, "alwayson_scripts": {text[:50]: 1}}),
        ("/sdapi/v1/img2img", {"steps": 1, "init_images": [text], "mask": text, "resize_mode": value}),
        ("/sdapi/v1/img2img", {"steps": 1, "init_images": ["file:///etc/passwd", "http://127.0.0.1:1/"]}),
        ("/sdapi/v1/options", {"sd_model_checkpoint": text, "x": value}),
        ("/sdapi/v1/extra-single-image", {"image": text, "upscaling_resize": value}),
        ("/v1/images/generations", {"prompt": text, "n": value, "size": "64x64", "steps": 1}),
        ("/v1/images/generations", {"prompt": f"x\nSteps: 1, Seed: {9**300}, Sampler: {text}", "size": "64x64"}),
        ("/v1/images/generations", {"prompt": "x", "model": text, "size": "64x64", "steps": 1, "stream": value}),
        ("/hf/text-to-image", {"inputs": text, "parameters": {"num_inference_steps": 1, "width": value}}),
        ("/internal/progress", {"id_task": text, "id_live_preview": value}),
    )  # fmt: skip
    path, body = chance.choice(sorts)
    return Hostile(f"{path} {str(body)[:60]}", message("POST", path, host, json.dumps(body).encode()))


def _chunks(body: bytes) -> bytes:
    return b"".join(b"1\r\n" + bytes([one]) + b"\r\n" for one in body)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, data: bytes = b"", *more: bytes, colour: int = 2) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _pictures(chance: random.Random) -> list[tuple[str, bytes]]:
    small = Image.new("RGB", (16, 16), "red")
    whole = encode(small, "x\nSteps: 1, Seed: 1, Sampler: Euler", {"schema": 1})
    bomb = _bomb()
    dot = zlib.compress(b"\0\0\0\0")
    damaged = bytearray(whole)
    for _ in range(5):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    text = _chunk(b"zTXt", b"parameters\x00\x00" + bomb)
    record = json.dumps(
        {"schema": 1, "resolved": {"request": {"prompt": ["x"], "steps": "<b>"}}, "model": [], "parents": 3}
    )
    found = [
        ("a bomb of 60000 x 60000", _png(60000, 60000, bomb)),
        ("a bomb of text", _png(1, 1, dot, text)),
        ("2^31 wide", _png(2**31 - 1, 1, b"x")),
        ("1 x 16000000", _png(1, 16_000_000, bomb)),
        ("no pixels", _png(0, 0)),
        ("1 x 1", encode(Image.new("RGB", (1, 1)))),
        ("1 x 5000", encode(Image.new("L", (1, 5000)))),
        ("damaged", bytes(damaged)),
        ("cut off", whole[: chance.randrange(len(whole))]),
        ("our record, all wrong", _png(1, 1, dot, _chunk(b"tEXt", b"mezzotint\0" + record.encode()))),
        ("a later schema", encode(small, "", {"schema": 99})),
        ("a graph that is none", _png(1, 1, dot, _chunk(b"tEXt", b'prompt\0{"1":[]}'), _chunk(b"tEXt", b"workflow\0"))),
        ("a text of markup", encode(small, "<script>x</script>\nSteps: <b>, Sampler: <i>, Seed: x", None)),
        ("html", b"<html><script>alert(1)</script>"),
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("pickle", b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR."),
        ("gif", _saved(small, "GIF")),
        ("tiff", _saved(small, "TIFF")),
        ("webp", _saved(small, "WEBP")),
        ("bmp", _saved(small, "BMP")),
        ("nothing", b""),
        ("chance", chance.randbytes(500)),
    ]  # fmt: skip
    return found


@cache
def _bomb() -> bytes:
    """Thirty megabytes in thirty kilobytes."""
    return zlib.compress(b"\x00" * 30_000_000, 1)


def _saved(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()
