"""Picture sets laid out for kohya's sd-scripts: a dataset TOML, or a folder of `NN_token` folders. No torch.

The TOML has [general], [[datasets]] and [[datasets.subsets]]; the innermost value wins. Settings that would change
training but have no counterpart here are refused by name, never skipped.

Shuffled or dropped tags become SHUFFLES captions per picture, decided by its name: text states can then be cached, and
a run can continue anywhere. Repeats are the same picture several times.

Source: https://github.com/kohya-ss/sd-scripts, docs/config_README-en.md.
"""

import hashlib
import json
import logging
import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, TypeVar, cast

from mezzotint.data.buckets import BucketRule
from mezzotint.data.sample import SUFFIXES, Picture
from mezzotint.errors import ConfigError, MezzotintError, unknown

log = logging.getLogger(__name__)

SHUFFLES = 8
_FOLDER = re.compile(r"(\d+)_(.+)")
_EXTENSIONS = (".caption", ".txt")  # where none is named: kohya's default, then what everybody has
_REFUSED = {
    "caption_dropout_rate": "set proportion_empty_prompts in the recipe",
    "caption_dropout_every_n_epochs": "set proportion_empty_prompts in the recipe",
    "color_aug": "change colours beforehand",
    "enable_wildcard": "write every wording as a caption of its own",
    "face_crop_aug_range": "crop beforehand",
    "flip_aug": "store mirrored pictures, where left and right do not matter",
    "keep_tokens_separator": "use keep_tokens",
    "random_crop": "crops are set in the recipe",
    "resize_interpolation": "leave it out",
    "secondary_separator": "leave it out",
    "skip_image_resolution": "set a size filter in the recipe",
    "token_warmup_step": "leave it out",
}
_IGNORED = {"cache_info", "token_warmup_min"}  # neither changes what is trained

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """One folder of pictures and what is said about them, with kohya's names."""

    image_dir: str
    metadata_file: str = ""
    class_tokens: str = ""  # the caption of pictures that have no caption file
    is_reg: bool = False
    num_repeats: int = 1
    caption_extension: str = ""
    caption_prefix: str = ""
    caption_suffix: str = ""
    caption_separator: str = ","
    keep_tokens: int = 0  # tags at the start that are neither moved nor dropped
    shuffle_caption: bool = False
    caption_tag_dropout_rate: float = 0.0

    def captions(self, text: str, key: str) -> tuple[str, ...]:
        """What the picture called `key` may be called: the text, or SHUFFLES arrangements of its tags."""
        text = " ".join(part for part in (self.caption_prefix, text, self.caption_suffix) if part)
        if not self.shuffle_caption and not self.caption_tag_dropout_rate:
            return (text,)
        tags = [tag.strip() for tag in text.split(self.caption_separator)]
        fixed, free = tags[: self.keep_tokens], tags[self.keep_tokens :]
        arranged: list[str] = []
        for i in range(SHUFFLES):
            draw = random.Random(hashlib.sha256(f"{key}|{i}".encode()).digest())
            order = draw.sample(free, len(free)) if self.shuffle_caption else free
            arranged.append(", ".join(fixed + [tag for tag in order if draw.random() >= self.caption_tag_dropout_rate]))
        return tuple(arranged)

    def pictures(self, root: Path) -> list[Picture]:
        """Its pictures, each once; relative folders start at `root`.

        Raises: ConfigError if the folder is missing; MezzotintError if a picture has no caption.
        """
        folder = root / self.image_dir
        if not folder.is_dir():
            raise ConfigError(f"image_dir {str(folder)!r}: no such folder")
        texts = self._metadata(root) if self.metadata_file else None
        found: list[Picture] = []
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
            text = self._text(path) if texts is None else texts.get(path.name, texts.get(path.stem))
            if text is None:
                if texts is not None:
                    log.warning("%s is not in %s and is left out", path, self.metadata_file)
                    continue
                raise MezzotintError(f"{path} has no caption; write one beside it, or give its folder class_tokens")
            key = f"{folder.name}/{path.name}"
            columns = {"subset": folder.name, "role": "regularisation" if self.is_reg else "training"}
            found.append(Picture(key, self.captions(text, key), columns, path.read_bytes))
        return found

    def _text(self, path: Path) -> str | None:
        for extension in [self.caption_extension] if self.caption_extension else _EXTENSIONS:
            beside = path.with_suffix(extension)
            if beside.exists() and (lines := beside.read_text("utf-8").strip().splitlines()):
                return lines[0].strip()
        return self.class_tokens or None

    def _metadata(self, root: Path) -> dict[str, str]:
        """Captions by file name or stem: kohya joins `caption` and `tags`."""
        path = root / self.metadata_file
        try:
            rows: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))  # Any: whatever taggers wrote
        except (OSError, ValueError) as error:
            raise ConfigError(f"metadata_file {str(path)!r} cannot be read: {error}") from None
        joint = f"{self.caption_separator} "
        return {
            re.split(r"[/\\]", name)[-1]: joint.join(str(row[part]) for part in ("caption", "tags") if row.get(part))
            for name, row in rows.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Folders that share a resolution and a batch size, with kohya's names."""

    resolution: int
    batch_size: int = 1
    enable_bucket: bool = False
    bucket_reso_steps: int = 64
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_no_upscale: bool = False
    subsets: tuple[Subset, ...] = ()
    root: Path = field(default=Path())

    @property
    def buckets(self) -> BucketRule | None:
        """The buckets asked for; None for squares of `resolution`."""
        if not self.enable_bucket:
            return None
        return BucketRule(
            resolution=self.resolution, step=self.bucket_reso_steps, shortest=self.min_bucket_reso,
            longest=self.max_bucket_reso, is_enlarged=not self.bucket_no_upscale,
        )  # fmt: skip

    def pictures(self) -> list[Picture]:
        """Every picture as often as it is repeated; regularisation pictures in turn, as many as there are others."""
        seen: set[tuple[str, str]] = set()
        trained: list[Picture] = []
        regular: list[Picture] = []
        for subset in self.subsets:
            if (place := (subset.image_dir, subset.metadata_file)) in seen:
                log.warning("image_dir %r is there twice; the first is used", subset.image_dir)
                continue
            seen.add(place)
            repeated = chain.from_iterable([picture] * subset.num_repeats for picture in subset.pictures(self.root))
            (regular if subset.is_reg else trained).extend(repeated)
        return trained + list(islice(cycle(regular), len(trained)))


def read_toml(path: Path) -> tuple[Dataset, ...]:
    """The datasets of a TOML; its folders are relative to it.

    Raises: ConfigError for anything unknown, of a wrong type, or that cannot be done here, with its full name.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    for name in data:
        if name not in {"general", "datasets"}:
            raise ConfigError(f"{path}: {unknown('table', name, ['general', 'datasets'])}")
    general = data.get("general", {})
    of_dataset = {f.name for f in fields(Dataset)} - {"subsets", "root"}
    _known(general, "general", of_dataset | {f.name for f in fields(Subset)} - {"image_dir", "metadata_file"})
    found: list[Dataset] = []
    for i, table in enumerate(_tables(data, "datasets", str(path))):
        where = f"datasets[{i}]"
        given = {name: value for name, value in table.items() if name != "subsets"}
        _known(given, where, of_dataset | {f.name for f in fields(Subset)} - {"image_dir", "metadata_file"})
        outer = general | given
        subsets: list[Subset] = []
        for j, inner in enumerate(_tables(table, "subsets", where)):
            _known(inner, f"{where}.subsets[{j}]", {f.name for f in fields(Subset)})
            subsets.append(_made(Subset, outer | inner, f"{where}.subsets[{j}]"))
            if subsets[-1].num_repeats < 1:
                raise ConfigError(f"{where}.subsets[{j}].num_repeats {subsets[-1].num_repeats}: at least 1 is needed")
        own = outer | {"subsets": tuple(subsets), "root": path.parent}
        if isinstance(side := own.get("resolution"), list) and len(set(cast("list[object]", side))) == 1:
            own["resolution"] = side[0]
        found.append(_made(Dataset, own, where))
    return tuple(found)


def read_folders(path: Path) -> Dataset | None:
    """A folder of folders called `10_red fox` (repeats, class tokens) as a dataset; None if it is no such folder."""
    inner = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    named = [(folder, match) for folder in inner if (match := _FOLDER.fullmatch(folder.name)) and int(match[1])]
    if not named or len(named) < len(inner) or any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        return None
    for folder, match in named:
        log.info("%s: every picture %s times, as %r where it has no caption", folder, match[1], match[2])
    subsets = [Subset(image_dir=f.name, num_repeats=int(m[1]), class_tokens=m[2]) for f, m in named]
    return Dataset(resolution=512, subsets=tuple(subsets), root=path)


def read_kohya(path: Path) -> list[Picture]:
    """The pictures of a TOML.

    Raises: ConfigError if its datasets differ in resolution or buckets: one run trains one of them.
    """
    datasets = read_toml(path)
    if len({(dataset.resolution, dataset.buckets) for dataset in datasets}) > 1:
        raise ConfigError(f"{path}: its datasets differ in resolution or buckets; train them one after another")
    return [picture for dataset in datasets for picture in dataset.pictures()]


def _tables(data: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    tables: object = data.get(name)
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{where}: [[{name}]] is missing")
    return cast("list[dict[str, Any]]", tables)  # cast: TOML arrays of tables; anything else fails as unknown keys do


def _known(table: Mapping[str, object], where: str, names: set[str]) -> None:
    for name, value in table.items():
        if name in _REFUSED and value not in (False, 0, "", None):
            raise ConfigError(f"{where}.{name} = {value!r} cannot be done here; {_REFUSED[name]}")
        if name not in names | _REFUSED.keys() | _IGNORED:
            raise ConfigError(f"{where}: {unknown('key', name, names)}")


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance from those values that are its fields, with their types checked."""
    known = fields(kind)  # pyright: ignore[reportArgumentType]  # only called with dataclasses
    taken: dict[str, Any] = {}
    for f in known:
        if f.name not in values:
            if f.default is MISSING:
                raise ConfigError(f"{where}: {f.name!r} is missing")
            continue
        value, hint = values[f.name], f.type
        if hint is float and isinstance(value, int):
            value = float(value)
        if isinstance(hint, type) and type(value) is not hint and not isinstance(value, Path):
            raise ConfigError(f"{where}.{f.name}: {value!r} where {hint.__name__} was expected")
        taken[f.name] = value
    return kind(**taken)
