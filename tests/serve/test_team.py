"""docs/team.md tells the truth: its clients run, its options exist, its tables say what the server says."""

import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main
from PIL import Image

from mezzotint.cli.main import app
from mezzotint.images import open_image
from serve.conftest import Served

PAGE = (Path(__file__).parent.parent.parent / "docs" / "team.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """Blocks of code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("block", blocks("python"), ids=["openai", "webuiapi", "huggingface_hub"])
def test_clients_run_as_they_are_printed(served: Served, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", False
    )  # the client refuses to speak at all otherwise
    said: dict[str, Any] = {"__name__": "team"}  # Any: what the block binds
    exec(
        compile(block.replace(ADDRESS, served.address).replace("port=8000", f"port={served.port}"), "team.md", "exec"),
        said,
    )
    if "made" in said:
        assert len(said["made"].data) == 2
        said["client"].close()
    else:
        assert isinstance(said["picture"], Image.Image)
        assert said["picture"].size == (64, 64)


def test_curl_is_answered_with_a_picture(client: httpx.Client) -> None:
    (block,) = [block for block in blocks("sh") if block.startswith("curl")]
    words = shlex.split(block)
    kind, _, value = words[words.index("-H") + 1].partition(": ")
    answer = client.post(words[1].removeprefix(ADDRESS), content=words[words.index("-d") + 1], headers={kind: value})
    assert open_image(answer.content).size == (64, 64)


def test_options_of_every_command_exist() -> None:
    commands: Any = typer.main.get_command(app)  # Any: typer's copy of click is not typed
    known = {name for option in commands.commands["serve"].params for name in option.opts}
    lines = re.findall(r"mezzotint serve(.*?)[`\n]", PAGE)
    assert len(lines) > 4
    for line in lines:
        assert {word for word in line.split() if word.startswith("-")} <= known, line


def test_limits_are_those_of_the_server(client: httpx.Client) -> None:
    limits = client.get("/api/v1/server").json()["limits"]
    for value in limits.values():
        assert re.search(rf"\b{value}\b", PAGE[PAGE.index("## Limits") :]), value


def test_every_metric_is_explained(client: httpx.Client) -> None:
    table = PAGE[PAGE.index("## Watching it") : PAGE.index("## When it does not work")]
    named = {name.partition("{")[0] for name in re.findall(r"`([a-z_]+(?:\{[a-z,]+\})?)`", table)}
    lines = client.get("/metrics").text.splitlines()
    found = {re.sub(r"_(bucket|sum|count)$", "", re.split(r"[ {]", line)[0]) for line in lines if line[:1] != "#"}
    found = {name for name in found if not name.endswith("_created")}
    states = {"accepted", "refused", "done", "failed", "cancelled"}
    assert named - states == found | {"requests_total"}  # which has no line before the first job
