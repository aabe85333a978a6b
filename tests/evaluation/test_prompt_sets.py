"""Built-in prompt sets are whole and licensed; files are read as they are meant, or refused by name."""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from mezzotint.errors import RequestError
from mezzotint.evaluation.prompt_sets import SETS, read_prompts
from mezzotint.training.config import packaged

ROOT = Path(__file__).parent.parent.parent


def test_the_built_in_sets_are_the_published_lists() -> None:
    parti, coco, icons = (read_prompts(name) for name in ("partiprompts", "mlperf-coco", "icons"))
    assert (len(parti.prompts), len(coco.prompts), len(icons.prompts)) == (1632, 5000, 24)
    assert (parti.prompts[0], parti.columns["category"][0]) == ("bond", "Abstract")
    assert parti.prompts[-1] == "a series of musical notes on a computer screen"
    assert (coco.prompts[0], coco.columns["image_id"][0]) == ("A city at night with people walking around.", "227049")
    assert any('"Cheese Shop"' in prompt for prompt in coco.prompts), "quotes are read as text"
    recipe = yaml.safe_load(packaged()["icons-unet"])
    assert list(icons.prompts) == recipe["validation_prompts"]
    assert all(prompt.strip() for found in (parti, coco, icons) for prompt in found.prompts)


def test_every_list_of_others_has_its_licence_beside_it() -> None:
    folder = resources.files("mezzotint") / "assets" / "prompts"
    said = (ROOT / "THIRD_PARTY.md").read_text("utf-8")
    for file in SETS.values():
        if file.endswith(".gz"):
            assert "icen" in (folder / file.replace(".tsv.gz", ".LICENSE")).read_text("utf-8")
            assert file in said


def test_the_hash_names_the_list() -> None:
    parti = read_prompts("partiprompts")
    assert parti.first(None) == parti
    assert parti.first(10).prompts == parti.prompts[:10]
    assert parti.first(10).columns["category"] == parti.columns["category"][:10]
    assert parti.first(10).sha256 != parti.sha256


def test_a_file_has_a_prompt_a_line_or_a_column(tmp_path: Path) -> None:
    plain, table = tmp_path / "p.txt", tmp_path / "p.tsv"
    plain.write_text("# a comment\na fox\n\n  a bird  \n")
    assert read_prompts(plain).prompts == ("a fox", "a bird")
    table.write_text('file\tcaption\n1.png\ta "red" fox\r\n2.png\t# a bird\n')
    found = read_prompts(table)
    assert found.prompts == ('a "red" fox', "# a bird")
    assert found.columns == {"file": ("1.png", "2.png")}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("nothing.txt", "# nothing\n", "there is no prompt in this file"),
        ("nothing.tsv", "prompt\n", "there is no prompt in this file"),
        ("odd.tsv", "prompt\tid\na fox\t1\na bird\n", "row 2 has not the 2 columns"),
        ("nameless.tsv", "id\ttext\n1\ta fox\n", "columns id, text → one called prompt or caption expected"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=words):
        read_prompts(tmp_path / name)


def test_an_unknown_set_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'partiprompts'"):
        read_prompts("partiprompt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read"):
        read_prompts(tmp_path / "binary.txt")
