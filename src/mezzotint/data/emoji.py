"""Concepts: Unicode emoji by code point and by name, and WordNet's answer to "is this word a thing one can see".

Sources: emojibase-data (labels, groups, skin tones), CLDR annotations (keywords), WordNet 3.1 (lexicographer files).
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}

# WordNet lexicographer files whose nouns can be drawn.
VISIBLE = {
    5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "nature", 18: "person",
    19: "phenomenon", 20: "plant", 25: "shape", 27: "substance",
}  # fmt: skip

# Groups and subgroups of Unicode that are text, flags or parts of other emoji.
UNWANTED_GROUPS = {"flags", "component", ""}
UNWANTED_SUBGROUPS = {"keycap", "alphanum", "skin-tone", "hair-style"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """What a picture shows, whatever its style. `code` is empty for free names."""

    code: str
    label: str
    group: str
    subgroup: str
    keywords: tuple[str, ...] = ()


def compact(name: str) -> str:
    """The name as lower-case letters and digits only: the form in which names of different packages agree."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", name).lower())


def code_points(text: str) -> str:
    """Code points in upper case without the emoji variation selector, which packages place at will."""
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


class Emoji:
    """All emoji of Unicode: `by_code`, `by_name` (labels and old names; free names must match these) and skin tones."""

    def __init__(self, emojibase: Path, cldr: Path) -> None:
        # Any: JSON of third parties, checked by what is taken from it.
        records: list[dict[str, Any]] = json.loads((emojibase / "en/data.json").read_text("utf-8"))
        messages: dict[str, Any] = json.loads((emojibase / "en/messages.json").read_text("utf-8"))
        annotations: dict[str, Any] = json.loads((cldr / "annotations/en/annotations.json").read_text("utf-8"))
        words = {k.replace("\ufe0f", ""): v for k, v in annotations["annotations"]["annotations"].items()}
        groups = {g["order"]: g["key"] for g in messages["groups"]}
        subgroups = {g["order"]: g["key"] for g in reversed(messages["subgroups"])}
        self.by_code: dict[str, Concept] = {}
        self.by_name: dict[str, str] = {}
        self.by_label: dict[str, str] = {}
        self._by_shortcode: dict[str, str] = {}
        self._tones: dict[str, tuple[str, int]] = {}  # toned code -> (code without tone, tone or 0 if mixed)
        for record in records:
            code, label = code_points(record["hexcode"]), record["label"]
            listed = words.get(record["emoji"].replace("\ufe0f", ""), {}).get("default", []) + record.get("tags", [])
            keywords = tuple(dict.fromkeys(k for k in listed if k.lower() != label.lower()))
            group, subgroup = groups.get(record.get("group"), ""), subgroups.get(record.get("subgroup"), "")
            self.by_code[code] = Concept(code=code, label=label, group=group, subgroup=subgroup, keywords=keywords)
            self.by_name.setdefault(compact(label), code)
            self.by_label[compact(label)] = code
            for skin in record.get("skins", []):
                tone = skin["tone"] if isinstance(skin.get("tone"), int) else 0
                self._tones[code_points(skin["hexcode"])] = (code, tone)
                self.by_name.setdefault(compact(skin["label"]), code_points(skin["hexcode"]))
        for record in records:
            plain = record["emoji"].replace("\ufe0f", "")
            if len(plain) == 1 and (name := unicodedata.name(plain, "")):
                self.by_name.setdefault(compact(name), code_points(record["hexcode"]))
        for path in sorted((emojibase / "en/shortcodes").glob("*.json")):
            shortcodes: dict[str, str | list[str]] = json.loads(path.read_text("utf-8"))
            for code, names in shortcodes.items():
                for name in [names] if isinstance(names, str) else names:
                    self._by_shortcode.setdefault(compact(name), code_points(code))

    def find(self, code: str) -> tuple[Concept, int] | None:
        """(concept, skin tone; 0 = none), or None for unknown codes, mixed tones, flags, letters and parts."""
        code = code_points(code)
        base, tone = (code, 0) if code in self.by_code else self._tones.get(code, ("", 0))
        concept = self.by_code.get(base)
        if concept is None or (base != code and tone == 0):
            return None
        if concept.group in UNWANTED_GROUPS or concept.subgroup in UNWANTED_SUBGROUPS:
            return None
        return concept, tone

    def codes_of(self, icons: Sequence[str], chars: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, str]:
        """Icon name -> code. `chars` (code -> name) decides where the package has it; names decide for the rest."""
        known = set(icons)
        codes: dict[str, str] = {}
        for code, name in sorted(chars.items()):
            if name in known and code_points(code) not in codes.values():
                codes.setdefault(name, code_points(code))
        unplaced: Sequence[str] = () if chars else icons
        for name in unplaced:
            label = aliases.get(name, "")
            code = self.by_label.get(compact(label)) if label else None
            for form in (compact(name), compact(re.sub(r"-\d+$", "", name))):
                code = code or self.by_name.get(form)
            for form in (compact(name), compact(re.sub(r"-\d+$", "", name))):
                code = code or self._by_shortcode.get(form)
            if code:
                codes[name] = code
        return codes


class Nouns:
    """WordNet's first sense of every noun, as far as it can be seen."""

    def __init__(self, wordnet: Path) -> None:
        files: dict[str, int] = {}
        for line in (wordnet / "dict/data.noun").read_text("latin1").splitlines():
            if not line.startswith(" "):
                files[line[:8]] = int(line[9:11])
        self._first: dict[str, int] = {}
        for line in (wordnet / "dict/index.noun").read_text("latin1").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                self._first[fields[0]] = files[fields[4 + int(fields[3]) + 2]]

    def kind(self, name: str) -> str | None:
        """Kind of thing that a hyphenated name shows, by its longest and last known words; None if none is visible."""
        words = name.split("-")
        for length in range(min(3, len(words)), 0, -1):
            for start in range(len(words) - length, -1, -1):
                kind = self._kind_of("_".join(words[start : start + length]))
                if kind:
                    return kind
        return None

    def _kind_of(self, word: str) -> str | None:
        forms = (
            word,
            word.rstrip("s"),
            re.sub("ies$", "y", word),
            re.sub("es$", "", word),
            re.sub("men$", "man", word),
        )
        sense = next((self._first[form] for form in forms if form in self._first), None)
        return VISIBLE.get(sense) if sense is not None else None
