"""Tokens: the golden ids of CLIP's own code, transformers live, a folder's own vocabulary, and what falls off."""

import html
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.errors import CheckpointError
from mezzotint.prompts.tokenizer import BOS, EOS, PIECES, Clean, bundled, from_folder, repaired
from prompts.folders import merges, small_vocabulary, theirs, write_folder

# One JSON object a line: text, ids by the tokenizer of openai/CLIP with ftfy, ids_transformers5 where transformers 5.23
# differs. 118 texts, some of them from PartiPrompts (Apache-2.0).
GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "golden" / "clip_tokens.jsonl").read_text().splitlines()
]
TEXTS: list[str] = [row["text"] for row in GOLDEN]
PARTS = [
    *"abeiorst 09'\"!?.,;-_<>|&#\n\t\u00a0\u200b\u3000ÄéßſİΣσς日😀👍🏽\u200d\u0301ﬁⅣ½“”‘’…",
    *("&amp;", "&lt;", "&amp;amp;", "&#39;", "'s", "'LL", "Ã©", "â€™", "ΟΔΟΣ", "photo", f" {BOS}", f" {EOS}"),
]
texts = st.lists(st.sampled_from(PARTS), max_size=16).map("".join)


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, int]:
    return bundled().engine.get_vocab()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, vocabulary: dict[str, int]) -> Any:
    """transformers' tokenizer with CLIP's vocabulary."""
    return theirs(write_folder(tmp_path_factory.mktemp("clip") / "t", vocabulary, merges()))


def padded(tokenizer: Any, text: str, length: int = 77) -> list[int]:  # Any: see `theirs`
    return tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids


def test_ids_are_those_of_clips_own_code() -> None:
    assert {text: bundled().encode(text) for text in TEXTS} == {row["text"]: row["ids"] for row in GOLDEN}


def test_ids_are_those_of_transformers_if_asked() -> None:
    tokenizer = bundled("transformers")
    expected = {row["text"]: row.get("ids_transformers5", row["ids"]) for row in GOLDEN}
    assert {text: tokenizer.encode(text) for text in TEXTS} == expected


def test_the_golden_texts_tell_the_two_ways_of_cleaning_apart() -> None:
    assert [row["text"][:14] for row in GOLDEN if row["ids"] != bundled("transformers").encode(row["text"])] == [
        "“smart quotes”"
    ]


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
SYMBOLS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}
RANK = {tuple(line.split(" ")): i for i, line in enumerate(merges())}


def spelled(piece: str) -> list[str]:
    """Byte-pair encoding, slowly: merge every occurrence of the most frequent pair until there is none."""
    if piece in (BOS, EOS):
        return [piece]
    symbols = [SYMBOLS[byte] for byte in piece.encode()]
    symbols[-1] += "</w>"
    while pairs := [pair for pair in itertools.pairwise(symbols) if pair in RANK]:
        best = min(pairs, key=lambda pair: RANK[pair])
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == best:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return symbols


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_ids_are_those_of_the_algorithm_as_published(vocabulary: dict[str, int], text: str) -> None:
    """Cleaning and pieces with `ftfy` and `regex`, as openai/CLIP uses them."""
    read = regex.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()
    pieces = regex.findall(PIECES, read, regex.IGNORECASE)
    assert bundled().encode(text) == [vocabulary[symbol] for piece in pieces for symbol in spelled(piece)]


def test_a_special_token_is_found_after_a_sign_too() -> None:
    """Where CLIP's code would spell it out in signs and letters; transformers and the engine find it anywhere."""
    assert bundled().encode(f"a{EOS}") == [320, 49407]
    assert bundled().encode(f"!{EOS}") == [256, 49407]


def test_transformers_live_on_the_golden_texts(reference: Any) -> None:
    tokenizer = bundled("transformers")
    for text in TEXTS:
        assert tokenizer.chunk(text) == padded(reference, text)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_transformers_live_on_any_text(reference: Any, text: str) -> None:
    assert bundled("transformers").encode(text) == reference(text, add_special_tokens=False).input_ids


def test_the_vocabulary_is_complete_and_numbered_as_published(vocabulary: dict[str, int]) -> None:
    assert sorted(vocabulary.values()) == list(range(49408))
    assert [vocabulary[word] for word in ("!", "!</w>", "in", "jekyll</w>", BOS, EOS)] == [
        0,
        256,
        512,
        49405,
        49406,
        49407,
    ]


def test_importing_and_loading_leave_torch_out() -> None:
    code = "import sys, mezzotint.prompts.tokenizer as t; t.bundled().encode('é'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_plain_text_is_repaired_without_ftfy_as_with_it() -> None:
    for code in range(128):
        text = f"a {chr(code)}b{chr(code)} c"
        full = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
        assert repaired(text) == full, hex(code)


# --- chunks


def test_a_chunk_is_framed_and_padded() -> None:
    tokenizer = bundled()
    assert tokenizer.chunk("a red fox", length=8) == [49406, 320, 736, 3240, 49407, 49407, 49407, 49407]
    assert tokenizer.chunk("a red fox", length=8, pad=0)[-3:] == [0, 0, 0]
    assert tokenizer.chunk("", length=3) == [49406, 49407, 49407]


def test_a_chunk_that_is_too_long_keeps_its_closing_token() -> None:
    assert bundled().chunk("fox " * 100) == [49406, *[3240] * 75, 49407]


# --- what falls off


def test_nothing_falls_off_at_75_tokens_and_one_word_at_76() -> None:
    assert bundled().dropped("fox " * 75) == ()
    assert bundled().dropped("fox " * 75 + "Dog") == ("Dog",)


def test_a_control_character_that_fell_off_is_told_though_it_is_no_word() -> None:
    """Only reachable without repair, which removes it."""
    assert bundled("transformers").dropped("fox \x1c", room=1) == ("\x1c",)


def test_what_fell_off_is_given_as_it_was_written() -> None:
    text = "“Æther” fox " * 20 + "THE  Düsseldorf\nskyline, 8K"
    assert bundled().dropped(text, room=len(bundled().encode(text)) - 4) == ("skyline,", "8K")


@pytest.mark.parametrize(
    ("text", "room", "lost"),
    [
        ("A Red Fox, Running", 2, ("Fox,", "Running")),
        ("A Red Fox, Running", 3, (",", "Running")),  # the cut goes through a word
        ("A Red Fox’s “Den”", 4, ("“Den”",)),  # repair changed the quotes: shown as written
        ("A Red Fox’s “Den”", 3, ("Fox’s", "“Den”")),  # the cut goes through a repaired word: all of it
        ("İİİ A Fox", 7, ("Fox",)),  # lower case is longer than the text
        ("Fox &amp; Hound", 1, ("&amp;", "Hound")),
        ("Fox&nbsp;Den here", 1, ("Den", "here")),  # repair split a word: shown as read
        ("x 😀👨‍👩‍👧", 2, ("👨‍👩‍👧",)),
    ],
)
def test_dropped_words(text: str, room: int, lost: tuple[str, ...]) -> None:
    assert bundled().dropped(text, room=room) == lost


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "Fox", "Düsseldorf,", "8K", "it's", "日本", "(red:1.2)"]), max_size=12),
    st.integers(0, 20),
)
def test_kept_and_dropped_are_the_text(words: list[str], room: int) -> None:
    """What is dropped is the end of the text; if the cut is between words, what is left has exactly `room` tokens."""
    text = " ".join(words)
    ids = bundled().encode(text)
    lost = " ".join(bundled().dropped(text, room=room))
    kept = text.removesuffix(lost)
    assert kept + lost == text
    assert (lost == "") == (len(ids) <= room)
    if kept.endswith(" "):
        assert bundled().encode(kept) == ids[:room]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=300), st.sampled_from(["openai", "transformers"]))
def test_no_text_is_refused(text: str, clean: Clean) -> None:
    tokenizer = bundled(clean)
    ids = tokenizer.encode(text)
    assert len(ids) <= 8 * len(text)
    assert all(0 <= i < 49408 for i in ids)
    assert bool(tokenizer.dropped(text, room=len(ids) // 2)) == bool(ids)


# --- folders


def test_a_folder_of_two_files_has_its_own_ids(tmp_path: Path) -> None:
    vocabulary, pairs = small_vocabulary()
    tokenizer = from_folder(write_folder(tmp_path / "t", vocabulary, pairs))
    assert tokenizer.encode("Red  fox") == [vocabulary["red</w>"], vocabulary["fox</w>"]]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (vocabulary[BOS], vocabulary[EOS], None)
    assert tokenizer.chunk("cat", length=4) == [vocabulary[w] for w in (BOS, "cat</w>", EOS, EOS)]


@pytest.mark.parametrize("is_whole", [False, True])
def test_the_two_readings_of_a_sign_that_is_also_padding(tmp_path: Path, is_whole: bool) -> None:
    """SD 2 and SDXL pad with "!": original programs still read "!" in a prompt as a sign, diffusers as padding."""
    vocabulary, pairs = small_vocabulary()
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": "!"}
    folder = write_folder(tmp_path / "t", vocabulary, pairs, tokenizer_config=names, special_tokens_map=names)
    reference = theirs(folder)
    if is_whole:
        folder = tmp_path / "whole"
        reference.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
    text = "red fox!!"
    assert from_folder(folder, clean="transformers").chunk(text, length=9) == padded(reference, text, 9)
    assert from_folder(folder).encode(text)[2:] == [vocabulary["!!</w>"]]
    assert from_folder(folder).pad == 0


def test_of_two_files_that_name_different_padding_the_older_is_right(tmp_path: Path) -> None:
    """SD 2's folder says so; a file with added_tokens_decoder was written by a version that knows better."""
    vocabulary, pairs = small_vocabulary()
    config: dict[str, object] = {"pad_token": EOS, "tokenizer_class": "CLIPTokenizer"}
    older = {"bos_token": {"content": BOS, "lstrip": False}, "eos_token": EOS, "unk_token": EOS, "pad_token": "!"}
    folder = write_folder(tmp_path / "t", vocabulary, pairs, tokenizer_config=config, special_tokens_map=older)
    assert from_folder(folder).pad == 0 == theirs(folder).pad_token_id
    config["added_tokens_decoder"] = {}
    folder = write_folder(tmp_path / "u", vocabulary, pairs, tokenizer_config=config, special_tokens_map=older)
    assert from_folder(folder).pad == vocabulary[EOS] == theirs(folder).pad_token_id


def test_a_trained_folder_reads_as_transformers_does(trained_folder: Path) -> None:
    folder = trained_folder / "tokenizer"
    reference, ours = theirs(folder), from_folder(folder, clean="transformers")
    assert (ours.bos, ours.eos, ours.pad) == (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id)
    for text in TEXTS:
        assert ours.chunk(text) == padded(reference, text)
    assert from_folder(folder).encode("A “red” heart") == ours.encode('a "red" heart')


def remove(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("vocab.json"), "vocab.json is missing; a tokenizer is tokenizer.json, or vocab.json and merges.txt"),
        (remove("merges.txt"), "merges.txt is missing"),
        (write("vocab.json", "{"), "vocab.json: not JSON"),
        (write("vocab.json", "[]"), "vocab.json: not a JSON object"),
        (write("merges.txt", "ab\n"), "line 1: 'ab' is not a pair of symbols"),
        (write("merges.txt", "q q\n"), "do not fit each other"),
        (write("tokenizer.json", "{}"), "tokenizer.json: not a tokenizer"),
        (write("tokenizer_config.json", '{"eos_token": "<end>"}'), "eos_token '<end>' is not in the vocabulary"),
        (write("tokenizer_config.json", '{"pad_token": 3}'), "pad_token 3 is not a text"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = write_folder(tmp_path / "t", *small_vocabulary())
    from_folder(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        from_folder(folder)
