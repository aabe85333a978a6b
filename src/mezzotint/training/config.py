"""A training recipe: frozen settings, read from YAML whose keys have the names of diffusers' scripts where one exists.

`parse` turns plain YAML data into any frozen dataclass and refuses unknown keys with the nearest known name, so that a
mistyped setting never trains silently with its default. A recipe may name stages, each a few changes to the rest, which
are trained one after another.
"""

import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from mezzotint.data.filters import Filters
from mezzotint.errors import ConfigError, unknown

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which pictures. `where` keeps rows by column values, `by` and `at_least` those with enough siblings; `filters` is
    the data rule, by scores and sizes.
    """

    resolution: int
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    by: str = ""
    at_least: int = 1
    group: str = ""  # column whose equal values stay together in a batch
    filters: Filters | None = None
    bucket_step: int = 0  # pictures keep their aspect in buckets with sides of such multiples; 0 = squares

    def __post_init__(self) -> None:
        if self.resolution < 8:
            raise ConfigError(f"data.resolution {self.resolution}: at least 8 pixels are needed")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaConfig:
    """An average of the weights: `power` with its relative standard deviation, or `classic` with its decay."""

    kind: Literal["power", "classic"]
    value: float

    def __post_init__(self) -> None:
        high = 0.28 if self.kind == "power" else 1.0  # 0.2886 is where the power becomes negative
        if not 0 < self.value < high:
            raise ConfigError(f"ema {self.kind} {self.value}: must lie between 0 and {high}")

    @property
    def name(self) -> str:
        """Unique among the averages of one run."""
        return f"{self.kind}-{self.value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides a run. `settings` belongs to the part and is parsed by it."""

    part: str
    data: DataConfig
    settings: Mapping[str, Any]  # Any: each part has its own dataclass for it
    max_train_steps: int
    train_batch_size: int
    learning_rate: float
    gradient_accumulation_steps: int = 1
    lr_scheduler: Literal["constant", "cosine", "wsd"] = "constant"  # wsd: constant, then down to 0 over lr_decay_steps
    lr_warmup_steps: int = 0
    lr_decay_steps: int = 0
    lr_end: float = 0.0  # of cosine and wsd, as a share of learning_rate
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16"] = "bf16"
    seed: int = 0
    ema: tuple[EmaConfig, ...] = ()
    starts_from: str = ""  # recipe whose weights are continued; "" = the stage before, or nothing
    sources: Mapping[str, str] = field(default_factory=dict[str, str])  # where the numbers come from, for readers
    needs: Mapping[str, str] = field(default_factory=dict[str, str])  # runs that this one builds on, by role
    logging_steps: int = 10
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    validation_steps: int = 500
    validation_prompts: tuple[str, ...] = ()
    sharded: bool = False  # over processes: weights, gradients, optimiser and averages of what does not fit into one
    evaluation: Mapping[str, Any] = field(
        default_factory=dict[str, Any]
    )  # steps, and settings of `evaluate`; {} = none
    snapshot_steps: int = 0  # keep the power averages every so often, for choosing their length afterwards; 0 = never

    def __post_init__(self) -> None:
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpoints_total_limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: at least 1 is needed")
        every = self.evaluation.get("steps", 0 if not self.evaluation else None)
        if not isinstance(every, int) or every < bool(self.evaluation):
            raise ConfigError(f"evaluation.steps {every!r}: how many steps lie between two evaluations, at least 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate {self.learning_rate}: must be above 0")

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    def is_evaluated(self, step: int) -> bool:
        """Whether networks are handed to an evaluation after this many steps."""
        return bool(self.evaluation) and (step % self.evaluation["steps"] == 0 or step == self.max_train_steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step: a pure function, so nothing about it needs to be saved."""
        rate, last = self.learning_rate, self.max_train_steps
        if step < self.lr_warmup_steps:
            return rate * (step + 1) / self.lr_warmup_steps
        if self.lr_scheduler == "cosine":
            done = (step - self.lr_warmup_steps) / max(1, last - self.lr_warmup_steps)
            return rate * (self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
        if self.lr_scheduler == "wsd" and step > last - self.lr_decay_steps:
            left = max(0, last - step) / self.lr_decay_steps
            return rate * (self.lr_end + (1 - self.lr_end) * left)
        return rate

    def trajectory(self) -> str:
        """Hash of the settings that a run may not change when it continues: all but its length and what it reports."""
        free = {
            "max_train_steps", "logging_steps", "checkpointing_steps", "checkpoints_total_limit", "validation_steps",
            "validation_prompts", "snapshot_steps", "needs", "lr_decay_steps", "sources", "sharded", "evaluation",
        }  # fmt: skip
        defaults = {f.name: f.default for f in fields(self)}  # left out, so that new settings change no old hash
        kept = {name: value for name, value in asdict(self).items() if name not in free and value != defaults[name]}
        added = {"filters": None, "bucket_step": 0}  # to a part that was always hashed whole: left out likewise
        kept["data"] = {n: value for n, value in kept["data"].items() if n not in added or value != added[n]}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def parse(kind: type[T], data: object, where: str = "recipe") -> T:
    """YAML data as a frozen dataclass; lists become tuples.

    Raises: ConfigError for unknown or missing keys and for values of a wrong type, with the full path of the key.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: {data!r} where a mapping was expected")
    given = typing.cast("Mapping[str, object]", data)  # cast: keys of YAML mappings are checked just below
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # pyright: ignore[reportArgumentType]  # only called with dataclasses
    for name in given:
        if name not in known:
            raise ConfigError(f"{where}: {unknown('key', str(name), known)}")
    for name, f in known.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where}: {name!r} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in given.items()})


def _value(hint: Any, value: object, where: str) -> Any:  # Any: type hints and YAML values have no common type
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {unknown('value', str(value), map(str, arguments))}")
        return value
    if origin in {types.UnionType, typing.Union}:
        if value is None and type(None) in arguments:
            return None
        options = [argument for argument in arguments if argument is not type(None)]
        if len(options) > 1:  # a number or a list of them
            is_list = isinstance(value, list | tuple)
            options = [o for o in options if (typing.get_origin(o) is tuple) == is_list]
        return _value(options[0], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {value!r} where a list was expected")
        listed = typing.cast("Sequence[object]", value)
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(listed))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {value!r} where a mapping was expected")
        mapped = typing.cast("Mapping[str, object]", value)
        return {name: _value(arguments[1], item, f"{where}.{name}") for name, item in mapped.items()}
    if is_dataclass(hint):
        return parse(typing.cast("type[Any]", hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: {value!r} where {hint.__name__} was expected")
    return value


def recipe(name: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The recipe at a path, or the packaged one of this name (icons-unet, sd-v1-5), with `key=value` changes applied.

    Raises: ConfigError if there is none of this name, something in it is wrong, or it has several stages.
    """
    found = stages(name, changes)
    if len(found) > 1:
        raise ConfigError(f"{name}: {len(found)} stages where one was expected")
    return next(iter(found))


def stages(name: str | Path, changes: Sequence[str] = ()) -> tuple[TrainConfig, ...]:
    """The stages of a recipe in the order of training; most recipes are one. Changes apply to every stage.

    Raises: ConfigError as `recipe`.
    """
    data = yaml.safe_load(_text(name))
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: no recipe; a mapping of settings was expected")
    common = typing.cast("dict[str, Any]", data)
    changed: list[dict[str, Any]] = common.pop("stages", None) or [{}]
    return tuple(
        parse(TrainConfig, _merged(_merged(common, stage), *map(_change, changes)), _at(i, len(changed)))
        for i, stage in enumerate(changed)
    )


def packaged() -> dict[str, str]:
    """Text of every packaged recipe, by name: set-part, and the plain name for those of the lineage."""
    return {
        ("" if folder.name == "lineage" else f"{folder.name}-") + file.name.removesuffix(".yaml"): text
        for folder in resources.files("mezzotint.recipes").iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml") and "\npart:" in (text := file.read_text("utf-8"))
    }


def _text(name: str | Path) -> str:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and path.exists():
        return path.read_text("utf-8")
    if str(name) not in (known := packaged()):
        raise ConfigError(unknown("recipe", str(name), known))
    return known[str(name)]


def _at(stage: int, count: int) -> str:
    return f"recipe.stages[{stage}]" if count > 1 else "recipe"


def _change(said: str) -> dict[str, Any]:
    """`a.b=value` as {a: {b: value}}."""
    dotted, equals, value = said.partition("=")
    if not equals:
        raise ConfigError(f"--set {said!r}: key=value was expected")
    change: Any = yaml.safe_load(value)
    for name in reversed(dotted.split(".")):
        change = {name: change}
    return change


def _merged(first: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over each other, key by key at every depth; what is no mapping is replaced."""
    merged = dict(first)
    for other in others:
        for name, value in other.items():
            if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
                merged[name] = _merged(merged[name], typing.cast("Mapping[str, Any]", value))
            else:
                merged[name] = value
    return merged


def shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """The same run stopped after `steps`, for trying it out."""
    return replace(config, max_train_steps=steps)
