"""Folders of tokenizers as Hugging Face lays them out, and transformers' reading of them."""

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from mezzotint.prompts.tokenizer import BOS, EOS


def merges() -> list[str]:
    """The lines of the bundled vocabulary."""
    packed = resources.files("mezzotint").joinpath("assets", "clip", "merges.txt.gz").read_bytes()
    return gzip.decompress(packed).decode().splitlines()


def small_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Bytes, seven merges and the special tokens: a vocabulary that is not CLIP's."""
    pairs = ["r e", "re d</w>", "f o", "fo x</w>", "c a", "ca t</w>", "! !</w>"]
    symbols = [chr(c) for c in range(33, 127)]
    words = [*symbols, *(s + "</w>" for s in symbols), *(p.replace(" ", "") for p in pairs), BOS, EOS]
    return {word: i for i, word in enumerate(words)}, pairs


def write_folder(path: Path, vocabulary: dict[str, int], pairs: list[str], **files: object) -> Path:
    """A tokenizer's folder as Hugging Face lays it out; `files` are JSON files by stem."""
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


def theirs(folder: Path) -> Any:  # Any: transformers' tokenizers have no types
    return CLIPTokenizer.from_pretrained(folder)  # pyright: ignore  # no types
