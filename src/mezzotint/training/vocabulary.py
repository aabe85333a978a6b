"""A byte-pair vocabulary in CLIP's form, learnt from captions: vocab.json and merges.txt of a tokenizer folder.

256 bytes, the same 256 closing a piece, one token per merge, then the opening and the closing token: any CLIP tokenizer
reads it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mezzotint.errors import ConfigError
from mezzotint.prompts.tokenizer import BOS, EOS, PIECES, POSITIONS

BYTES = 2 * 256


def vocabulary_folder(captions: Sequence[str], size: int, cache: Path) -> Path:
    """Folder of the vocabulary of at most `size` tokens for these captions, learnt once.

    Raises: ConfigError if `size` has no room for the bytes and the two special tokens.
    """
    if size < BYTES + 2:
        raise ConfigError(f"vocabulary of {size} tokens: the bytes and two special tokens alone are {BYTES + 2}")
    said = "\n".join([str(size), *sorted(set(captions))])
    folder = cache / f"vocabulary-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    if not (folder / "vocab.json").exists():
        write_vocabulary(folder, merges(said.splitlines()[1:], size - BYTES - 2))
    return folder


def merges(lines: Sequence[str], count: int) -> list[tuple[str, str]]:
    """The `count` most useful merges of the lines, or fewer if there are no more pairs."""
    engine = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), end_of_word_suffix="</w>",
        min_frequency=2, show_progress=False,
    )  # fmt: skip
    engine.train_from_iterator(lines, trainer)
    learnt: list[list[str]] = json.loads(engine.to_str())["model"]["merges"]
    return [(first, second) for first, second in learnt][:count]


def write_vocabulary(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """The files of a tokenizer folder; vocab.json last, because it says that the folder is complete."""
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(first + second for first, second in pairs), BOS, EOS]
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": POSITIONS, "do_lower_case": True, "bos_token": BOS,
        "eos_token": EOS, "unk_token": EOS, "pad_token": EOS,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    partial = folder / "vocab.partial"
    partial.write_text(json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(folder / "vocab.json")


def byte_symbols() -> list[str]:
    """The character that stands for each byte: printable bytes for themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
