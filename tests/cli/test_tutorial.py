"""docs/tutorial.md: every block runs, in order, in one folder; its links lead somewhere."""

import re
import shlex
from pathlib import Path

from cli.conftest import Command

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
TEXT = TUTORIAL.read_text("utf-8")
WRITTEN = ("fox.png", "story.html", "guidance.html", "family.svg", "lazy-fox.png", "step.html", "runs/sd-v1-1/export")


def test_every_block_runs_in_order(mezzotint: Command, world: Path) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
    assert {language for language, _ in blocks} == {"sh", "python"}
    names: dict[str, object] = {"__name__": "tutorial"}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(TUTORIAL), "exec"), names)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "mezzotint"
            ran = mezzotint(*arguments)
            assert ran.code == 0, f"{line}\n{ran.err}"
    assert all((world / name).exists() for name in WRITTEN)


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (TUTORIAL.parent / target).exists(), target
