"""README tells the truth: its tree is complete, its links lead somewhere, its Python runs."""

import re
import shutil
from pathlib import Path

import pytest

from cli.conftest import save_folder, tiny_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_file_of_the_source() -> None:
    tree = README[README.index("## Tree") :]
    rooms = dict(re.findall(r"^  (\w+)/ .*\n((?:    .*\n)*)", tree, re.M))
    for path in sorted((ROOT / "src" / "mezzotint").rglob("*.py")):
        room, name = path.parent.name, path.name
        if name != "__init__.py" and "recipes" not in path.parts:
            where = tree if room == "mezzotint" else rooms[room]
            assert re.search(rf"^ +{re.escape(name)} ", where, re.M), f"README's tree lacks {room}/{name}"


def test_the_tree_names_no_file_that_is_gone() -> None:
    tree = README[README.index("## Tree") :]
    for name in re.findall(r"^    (\w+\.py) ", tree, re.M):
        assert list((ROOT / "src").rglob(name)), f"README's tree names {name}, which does not exist"


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert blocks
    save_folder(tiny_checkpoint(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert len(list((tmp_path / "outputs").glob("*.png"))) == 2
    shutil.rmtree(tmp_path / "outputs")


def test_the_chinese_front_page_has_the_same_commands() -> None:
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    front = README[: README.index("## Tree")]
    code = re.compile(r"^```(?:sh|python)\n.*?^```", re.M | re.S)
    assert code.findall(chinese) == code.findall(front)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", chinese):
        assert target.startswith("http") or (ROOT / target).exists(), target
    commands = set(re.findall(r"^\| .* \| `(mezzotint [^`]+)` \|$", chinese, re.M))
    assert commands
    assert all(f"`{command}`" in front for command in commands)
