"""An engine without networks: takes a known time for every step, and can be told to fail. For arithmetic of queues.

The prompt says what happens: "fail" fails, "die" kills the process, "slow" takes ten times as long; everything else is
a picture of one colour. One job at a time, so that a job of n pictures takes exactly n times SERVICE_S.
"""

import io
import os
import select
import sys
import time
from collections import deque
from typing import Any  # Any: JSON

from PIL import Image

from mezzotint.images import encode
from mezzotint.serve.wire import packed, read_frame

SERVICE_S = float(os.environ.get("FAKE_SERVICE_S", "0.05"))
STEPS = 5


def main() -> None:
    sink = sys.stdout.buffer
    stream = io.BufferedReader(io.FileIO(0), 1)  # so that nothing is hidden from select
    waiting: deque[dict[str, Any]] = deque()  # Any: JSON
    gone: set[str] = set()

    def say(head: dict[str, Any], *parts: bytes) -> None:  # Any: JSON
        sink.write(packed(head, *parts))
        sink.flush()

    def hear(seconds: float, *, is_idle: bool = False) -> None:
        """Commands that come within that time, or until there is something to do."""
        until = time.monotonic() + seconds
        while True:
            ready, *_ = select.select([0], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return
            frame = read_frame(stream)
            if frame is None:
                os._exit(0)
            head = frame.head
            if head["do"] == "load":
                if "deadly" in head["path"]:
                    os._exit(9)
                if "broken" in head["path"]:
                    say({"is": "unloadable", "model": head["model"], "detail": "x"})
                    continue
                size = {"width": 64, "height": 64, "steps": STEPS, "guidance": 1.0}
                told: dict[str, Any] = {
                    "preset": "sd15",
                    "title": " ".join(f"{name}={value}" for name, value in head["how"].items()),
                    "dtype": "none",
                    "device": "none",
                    "needs": [],
                    "room": 75,
                }
                defaults = {**size, "sampler": "euler", "spacing": "karras"}
                say({"is": "loaded", "model": head["model"], **told, "defaults": defaults})
            elif head["do"] == "make":
                waiting.append(head)
                total = sum(request.get("count", 1) for request in head["requests"])
                say({"is": "started", "job": head["job"], "total": total})
                if is_idle:
                    return
            elif head["do"] == "cancel":
                gone.add(head["job"])

    say({"is": "hello"})
    clock = 0.0  # when the engine is free: nothing is lost between two jobs
    while True:
        is_idle = not waiting
        hear(3600.0 if is_idle else 0.0, is_idle=is_idle)
        if is_idle:
            clock = time.monotonic()
        if not waiting:
            continue
        head = waiting.popleft()
        job, number, began = head["job"], 0, time.monotonic()
        total = sum(request.get("count", 1) for request in head["requests"])
        for index, request in enumerate(head["requests"]):
            prompt = request.get("prompt", "")
            if prompt == "die":
                os._exit(9)
            for image in range(request.get("count", 1)):
                place = {"job": job, "request": index, "image": image, "number": number}
                seed = request.get("seed", 0) + image
                record = {"schema": 1, "resolved": {"request": {"prompt": prompt, "seed": seed}}}
                png = encode(Image.new("RGB", (64, 64), (seed % 256, 0, 0)), "", record)
                for step in range(STEPS):
                    if job in gone:
                        break
                    clock += SERVICE_S / STEPS * (10 if prompt == "slow" else 1)
                    hear(max(0.0, clock - time.monotonic()))
                    say({"is": "progress", **place, "step": step + 1, "steps": STEPS, "total": total, "sigma": 1.0})
                if job in gone or prompt == "fail":
                    break
                say({"is": "picture", **place, "seed": seed, "width": 64, "height": 64}, png)
                number += 1
        busy = time.monotonic() - began
        if job in gone:
            say({"is": "cancelled", "job": job, "seconds": busy, "busy": busy})
        elif any(request.get("prompt") == "fail" for request in head["requests"]):
            say({"is": "failed", "job": job, "code": "failed", "detail": "as told", "seconds": busy, "busy": busy})
        else:
            say({"is": "done", "job": job, "seconds": busy, "busy": busy})


if __name__ == "__main__":
    main()
