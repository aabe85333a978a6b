"""Text -> token ids, by CLIP's byte-pair vocabulary or by the one that a checkpoint's folder brings.

A piece is a run of letters, one digit, or a run of signs; it is spelt in bytes and merged from pairs, most frequent
pair first; the last symbol of a piece carries `</w>`. The vocabulary is 256 bytes, the same 256 closing a piece, the
result of each merge in order, then the two tokens that open and close a text. What is done to the text before that
differs between programs and is a named value, `Clean`.

Nothing here imports torch: a server counts tokens without it.

Source: the tokenizer of Radford et al. 2021, arXiv:2103.00020 (openai/CLIP); bytes as symbols: GPT-2.
"""

import functools
import gzip
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from mezzotint.errors import CheckpointError

Clean = Literal["openai", "transformers"]
"""What happens to a text first.

openai        repaired (mojibake, curly quotes, HTML entities, white space), then lower case: what CLIP was trained
              with, and what the original programs do
transformers  as transformers 5 does: NFC, white space and lower case only; a padding token such as "!" is also
              recognised inside the text
"""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77  # tokens that every text tower of the family reads, the opening and the closing one included
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    """The ids of a text, without opening and closing token, and where in `text` each begins.

    `text` is the text as it was read: repaired, if the tokenizer repairs, but in the writer's own case.
    """

    ids: list[int]
    starts: list[int]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """A vocabulary and the way text is read with it. Made by `bundled` and `from_folder`; safe to share by threads."""

    engine: tokenizers.Tokenizer
    bos: int
    eos: int
    pad: int | None = None  # None: the files state none, and the family's rule decides
    is_repaired: bool = True
    is_lowered: bool = True  # in Python, whose lower case knows the final sigma; otherwise the engine lowers

    def tokens(self, text: str) -> Tokens:
        """The ids of the text, however many, with the place of each. Special tokens are read if they are spelt out."""
        if self.is_repaired:
            text = repaired(text)
        read = text.lower() if self.is_lowered else text
        # A lone surrogate is no character, and the engine would refuse it.
        encoding = self.engine.encode(read.encode("utf-8", "replace").decode(), add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        if len(read) != len(text):  # 'İ' becomes two characters in lower case
            origin = [i for i, character in enumerate(text) for _ in character.lower()]
            starts = [origin[start] for start in starts]
        return Tokens(encoding.ids, starts, text)

    def encode(self, text: str) -> list[int]:
        """The ids of the text without opening, closing and padding tokens, however many."""
        return self.tokens(text).ids

    def frame(self, ids: Sequence[int], *, length: int = POSITIONS, pad: int | None = None) -> list[int]:
        """One chunk as a text tower reads it: opening token, at most length - 2 ids, closing token, padding.

        pad None means this tokenizer's own padding, or the closing token if it has none.
        """
        fill = next(token for token in (pad, self.pad, self.eos) if token is not None)
        row = [self.bos, *ids[: length - 2], self.eos]
        return row + [fill] * (length - len(row))

    def chunk(self, text: str, *, length: int = POSITIONS, pad: int | None = None) -> list[int]:
        """`frame` of the text's ids: exactly `length` ids; what does not fit is cut off, see `dropped`."""
        return self.frame(self.encode(text), length=length, pad=pad)

    def dropped(self, text: str, *, room: int = POSITIONS - 2) -> tuple[str, ...]:
        """The words of the text, as they were written, that lie beyond its first `room` tokens; () if all fit.

        If the cut goes through a word, the part of it that fell off comes first.
        """
        ids, starts, read = self.tokens(text)
        if len(ids) <= room:
            return ()
        lost = read[starts[room] :].split()
        written, words = text.split(), read.split()
        if len(written) != len(words) or not lost:  # repair joined or split words, or only a control character fell off
            return tuple(lost) or (read[starts[room] :],)
        at = len(words) - len(lost)
        first = lost[0] if written[at] == words[at] else written[at]
        return (first, *written[at + 1 :])


@functools.cache
def bundled(clean: Clean = "openai") -> Tokenizer:
    """CLIP's own tokenizer, from the vocabulary inside the package: 49,408 tokens, opening 49406, closing 49407."""
    packed = resources.files("mezzotint").joinpath("assets", "clip", "merges.txt.gz").read_bytes()
    merges = _pairs(gzip.decompress(packed).decode())
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges), BOS, EOS]
    vocabulary = {word: i for i, word in enumerate(words)}
    engine = _engine(vocabulary, merges, clean=clean, special=(BOS, EOS))
    is_openai = clean == "openai"
    return Tokenizer(
        engine=engine, bos=vocabulary[BOS], eos=vocabulary[EOS], is_repaired=is_openai, is_lowered=is_openai
    )


def from_folder(path: Path, *, clean: Clean = "openai") -> Tokenizer:
    """The tokenizer of a checkpoint's folder: tokenizer.json, or vocab.json with merges.txt, and their special tokens.

    A tokenizer.json decides itself about case and pieces; "openai" then only repairs the text before. With "openai" a
    padding token that is also a sign ("!" of SD 2 and of SDXL's second tower) is read as that sign inside a text, as
    the original programs do; diffusers and "transformers" read it as padding.

    Raises: CheckpointError for files that are missing, damaged or contradict each other.
    """
    special = _special_tokens(path)
    bos, eos, pad = special.get("bos_token", BOS), special.get("eos_token", EOS), special.get("pad_token")
    listed = [bos, eos] if clean == "openai" or pad is None else [bos, eos, pad]
    whole = path / "tokenizer.json"
    if whole.is_file():
        settings = _json(whole)
        if clean == "openai":
            added: list[dict[str, Any]] = settings.get("added_tokens") or []  # Any: JSON
            settings["added_tokens"] = [token for token in added if token.get("content") != pad or pad in (bos, eos)]
        try:
            engine = tokenizers.Tokenizer.from_str(json.dumps(settings))
        except Exception as error:  # the engine raises nothing more exact
            raise CheckpointError(f"{whole}: not a tokenizer ({error})") from error
        engine.no_truncation()
        engine.no_padding()
        find = engine.token_to_id
    else:
        vocabulary, merges = _json(path / "vocab.json"), _pairs(_text(path / "merges.txt"))
        try:
            engine = _engine(vocabulary, merges, clean=clean, special=listed)
        except Exception as error:  # the engine raises nothing more exact
            raise CheckpointError(f"{path}: vocab.json and merges.txt do not fit each other ({error})") from error
        find = vocabulary.get  # not the engine's, which numbers a special token that it does not know

    def number(token: str, role: str) -> int:
        found = find(token)
        if found is None:
            raise CheckpointError(f"{path}: {role} {token!r} is not in the vocabulary")
        return found

    return Tokenizer(
        engine=engine,
        bos=number(bos, "bos_token"),
        eos=number(eos, "eos_token"),
        pad=None if pad is None else number(pad, "pad_token"),
        is_repaired=clean == "openai",
        is_lowered=clean == "openai" and not whole.is_file(),
    )


def repaired(text: str) -> str:
    """The text with mojibake and typography repaired, HTML entities resolved and white space made single spaces.

    Source: openai/CLIP, which repairs with ftfy, resolves entities twice and strips.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # nothing else is touched by the two
        import ftfy  # 60 ms that most prompts do not need

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _engine(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], *, clean: Clean, special: Iterable[str]
) -> tokenizers.Tokenizer:
    """The byte-pair machine of a vocabulary; ids are the vocabulary's, whatever their order."""
    engine = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=EOS, fuse_unk=False)
    )
    pieces = Regex(PIECES if clean == "transformers" else f"(?i:{PIECES})")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=clean == "transformers"),
        ]
    )
    if clean == "transformers":
        engine.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
    # CLIP's code finds a spelt-out special token only where a piece begins; here, as in transformers, it is found
    # anywhere ("!<|endoftext|>").
    added: list[AddedToken | str] = [AddedToken(token, normalized=False) for token in dict.fromkeys(special)]
    engine.add_special_tokens(added)  # pyright: ignore[reportUnknownMemberType]  # its stub says list of anything
    return engine


def _byte_symbols() -> list[str]:
    """The character that stands for each byte, in the vocabulary's order: printable bytes first, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _pairs(text: str) -> list[tuple[str, str]]:
    """The merges of a merges.txt: one pair a line, most frequent first."""
    pairs: list[tuple[str, str]] = []
    for i, line in enumerate(text.splitlines()):
        first, space, second = line.partition(" ")
        if second and not (i == 0 and line.startswith("#version")):
            pairs.append((first, second))
        elif line and not space:
            raise CheckpointError(f"merges.txt line {i + 1}: {line!r} is not a pair of symbols")
    return pairs


def _special_tokens(path: Path) -> dict[str, str]:
    """The special tokens that a folder's files name, by their role."""
    config = _json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    named = path / "special_tokens_map.json"
    # SD 2's two files name different padding ("<|endoftext|>", "!"); the older file is right, and only files that
    # list added_tokens_decoder were written by a version that keeps the newer one right.
    if named.is_file() and "added_tokens_decoder" not in config:
        config |= _json(named)
    special: dict[str, str] = {}
    for role in ("bos_token", "eos_token", "pad_token"):
        token: Any = config.get(role)  # Any: JSON, a string or an object
        content: Any = cast(dict[str, Any], token).get("content") if isinstance(token, dict) else token
        if content is not None and not isinstance(content, str):
            raise CheckpointError(f"{path}: {role} {content!r} is not a text")
        if content is not None:
            special[role] = content
    return special


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: {path.name} is missing; a tokenizer is tokenizer.json, or vocab.json and merges.txt"
        ) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text ({error})") from error


def _json(path: Path) -> dict[str, Any]:  # Any: JSON
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return cast(dict[str, Any], content)
