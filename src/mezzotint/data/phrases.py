"""English of the icon captions: what a picture shows, in which style, said in several ways.

The grammar is small on purpose: a noun phrase ("a red apple"), a style phrase ("noto emoji"), and a few sentences.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PREPOSITIONS = r" (?:with|in|on|of|over|behind|and|under|at|for|without|from|to|holding|facing|wearing|showing) "


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Tables of `recipes/icons/names.yaml` that the grammar needs."""

    labels: Mapping[str, str]
    signs: frozenset[str]
    symbols: frozenset[str]
    mass: frozenset[str]
    singular: frozenset[str]


def article(phrase: str) -> str:
    """'a' or 'an' before a phrase, by sound where spelling misleads."""
    word = phrase.lower()
    if re.match(r"(uni|ufo|use|euro|ewe|one\b|once|ukul|u-)", word):
        return "a"
    return "an" if re.match(r"([aeiou]|hour|heir|honest|x-ray|sos\b|mp3)", word) else "a"


def concept_words(label: str, words: Words) -> str:
    """A Unicode name as words for a caption: 'man: beard' -> 'man with a beard'."""
    text = label.replace("’", "'").replace("“", '"').replace("”", '"')
    if text.endswith(("o'clock", "-thirty")):
        return f"clock showing {text}"
    if text in words.signs:
        return f"{text} sign"
    if text in words.symbols:
        return f"{text} symbol"
    text = words.labels.get(text, text)
    head, colon, tail = (part.strip() for part in text.partition(":"))
    if not colon:
        return text
    if tail.endswith("hair"):
        return f"{head} with {tail}"
    if tail == "beard":
        return f"{head} with a beard"
    if tail == "bald":
        return f"bald {head}"
    if head in {"family", "kiss", "couple with heart"}:
        people = [f"{article(person)} {person}" for person in tail.split(", ")]
        joined = " and ".join(part for part in (", ".join(people[:-1]), people[-1]) if part)
        return f"{head} {'between' if head == 'kiss' else 'of'} {joined}"
    return f"{head} {tail}"


def noun_phrase(concept: str, words: Words) -> str:
    """The concept with its article; plurals, mass nouns and numbers stay without one."""
    head, *rest = concept.split()
    core = re.split(PREPOSITIONS, concept)[0].split()
    last = core[-1].lower()
    is_plural = last.endswith("s") and not last.endswith(("'s", "ss", "us")) and last not in words.singular
    is_mass = last in words.mass and len(core) <= 2
    if is_plural or is_mass or head in {"two", "three"}:
        return concept
    if concept[0].isupper() and (not rest or rest[0][0].isupper()):
        return concept  # a proper name
    return f"{article(concept)} {concept}"


def toned(concept: str, tone: str) -> str:
    """The concept with its skin tone, before a trailing direction."""
    if not tone:
        return concept
    joint = "and" if " with " in concept else "with"
    body, facing, direction = concept.partition(" facing ")
    return f"{body} {joint} {tone} skin tone{facing}{direction}"


def captions(
    concept: str,
    styles: Sequence[str],
    *,
    ink: str,
    colors: Sequence[str],
    keywords: Sequence[str],
    seed: int,
    words: Words,
) -> tuple[str, ...]:
    """Ways to say what a picture shows, the plainest with its style first; the last names no style at all.

    `styles` are two names of the style, `ink` the colour of a one-colour drawing, `colors` what was measured.
    """
    thing = noun_phrase(concept, words)
    first, second = (f"{ink} {style}".strip() for style in styles)
    usable = [word for word in keywords if word.isascii() and len(word) < 24][:12]
    picked = random.Random(seed).sample(usable, min(3, len(usable)))
    said = [
        f"{thing}, {first}",
        f"{article(first)} {first} of {thing}",
        f"{thing}, {second}, on a white background",
        ", ".join([concept, *picked, second]),
    ]
    if colors and not ink:
        said.append(f"{thing}, {first}, {' and '.join(colors[:2])}")
    said.append(thing)
    return tuple(said)
