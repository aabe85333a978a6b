"""An open model of load: requests come at their times whether the server keeps up or not. A process of its own.

    python tests/serve/storm.py http://127.0.0.1:8000 RATE SECONDS

Latency counts from the time at which a request should have been sent. A closed model would slow down with the server
and hide what it should show. The last line is what clients saw, as JSON.
"""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import httpx


@dataclass
class Heard:
    """What clients saw."""

    accepted: list[float] = field(default_factory=list[float])  # seconds from due to picture
    refused: list[float] = field(default_factory=list[float])  # seconds from due to answer
    retry_after: list[int] = field(default_factory=list[int])
    health: list[float] = field(default_factory=list[float])
    broken: list[str] = field(default_factory=list[str])
    done_at: list[float] = field(default_factory=list[float])


def at(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def storm(address: str, rate: float, seconds: float) -> Heard:
    """So many requests a second, for so long; each waits for its picture if it is taken."""
    heard = Heard()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        start = time.monotonic() + 0.2

        async def one(number: int) -> None:
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                answer = await client.post("/v1/images/generations", json={"prompt": "x", "guidance": 1})
            except httpx.HTTPError as error:
                heard.broken.append(repr(error))
                return
            spent = time.monotonic() - due
            if answer.status_code == 200:
                heard.accepted.append(spent)
                heard.done_at.append(time.monotonic() - start)
            elif answer.status_code in {429, 503}:
                heard.refused.append(spent)
                heard.retry_after.append(int(answer.headers["retry-after"]))
            else:
                heard.broken.append(f"{answer.status_code} {answer.text[:200]}")

        async def watch() -> None:
            while True:
                began = time.monotonic()
                assert (await client.get("/healthz")).status_code == 200
                heard.health.append(time.monotonic() - began)
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return heard


def heard(address: str, rate: float, seconds: float) -> Heard:
    """What clients of another process saw of such a storm."""
    command = [sys.executable, __file__, address, str(rate), str(seconds)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Heard(**json.loads(ran.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(storm(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))))
