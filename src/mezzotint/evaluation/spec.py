"""What is to be measured: `EvaluationSpec`, frozen settings from flags, YAML or keywords. No torch.

The fields are the flags of `mezzotint evaluate` and the keys of its YAML. They fall into three kinds, which decide what
an output folder may be continued with: what decides features and pictures (`work()`), what only decides the numbers
made from these, and what decides neither (where, how many workers).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mezzotint.errors import RequestError, unknown
from mezzotint.pipeline.source import SAID, Source

METRICS: dict[str, str] = {
    "fid": "Frechet distance of features, and its extrapolation to infinitely many pictures",
    "sfid": "Frechet distance of Inception's spatial features",
    "kid": "kernel distance, unbiased: the one for few pictures",
    "cmmd": "maximum mean discrepancy of CLIP features",
    "pr": "precision and recall",
    "dc": "density and coverage",
    "is": "Inception score",
    "clip": "CLIP score and R-precision",
    "copies": "copy rate: pictures that are nearer to one training picture than to all others",
}
"""Every metric by the name that it is asked for by."""

COMPARING = frozenset({"fid", "sfid", "kid", "cmmd", "pr", "dc"})  # need reference pictures
SINGLE = "pictures"  # what given pictures are called in reports; generated sets are called by their settings
REFERENCE, TRAINING = "against", "training"

_FREE = {"out", "workers", "shard", "statistics"}  # change nothing in any number
_LATE = {"metrics", "weight", "candidates", "subset"}  # change numbers, but neither pictures nor features


class EvaluationSpec(BaseModel):
    """One evaluation. Raises RequestError with one line for everything that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: tuple[str, ...] = Field(
        default=(), description="folder, zip, .parquet, .tar or picture files; an earlier evaluation; a statistics file"
    )
    model: str | None = Field(
        default=None, description="make the pictures with this model: folder, file, ORG/NAME; with prompts alone icons"
    )
    prompts: str | None = Field(
        default=None, description="partiprompts, mlperf-coco, icons, or a file; for given pictures: one line for each"
    )
    against: str | None = Field(default=None, description="reference pictures, in any form that pictures may have")
    training: str | None = Field(default=None, description="pictures that the model learnt from, for the copy rate")
    metrics: tuple[str, ...] = Field(default=(), description=f"{', '.join(METRICS)}; none: what the rest allows")
    features: tuple[str, ...] = Field(
        default=("inception",), description="inception[:FILE], evaluator, clip:PATH, lite0[:FILE]"
    )
    protocol: str = Field(default="tf1", description="how Inception is shown pictures: tf1, pytorch-fid, clean, …")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="what features are computed in")
    clip: str | None = Field(
        default=None, description="CLIP that scores: a path, or evaluator, the one in this package"
    )
    weight: float = Field(default=2.5, gt=0, description="w of w * max(cos, 0)")
    prefix: str = Field(
        default="", description='text before every prompt when it is scored, such as "A photo depicts "'
    )
    candidates: int = Field(default=100, ge=2, description="captions that R-precision chooses among")
    subset: int | None = Field(
        default=None, ge=2, description="pictures in a subset of KID; none: 1000, or half of all"
    )
    statistics: bool = Field(default=False, description="also write a statistics file of every set, to compare with")
    guidance: tuple[float, ...] = Field(default=(), description="guidance scales; several are a sweep")
    steps: tuple[int, ...] = Field(default=(), description="sampling steps; several are a sweep")
    sampler: str | None = Field(default=None, description="sampler; none: the model's own")
    spacing: str | None = Field(default=None, description="spacing of noise levels; none: the sampler's")
    negative: str | None = Field(default=None, description="negative prompt")
    width: int | None = Field(default=None, description="pixels")
    height: int | None = Field(default=None, description="pixels")
    seed: int = Field(default=0, ge=0, le=2**62, description="seed of the first picture; every other has its own")
    per_prompt: int = Field(default=1, ge=1, description="pictures for each prompt")
    limit: int | None = Field(default=None, ge=1, description="only the first so many prompts, or given pictures")
    dtype: str = Field(default="auto", description=SAID["dtype"])
    device: str = Field(default="auto", description=SAID["device"])
    weights: str = Field(default="auto", description=SAID["weights"])
    preset: str | None = Field(default=None, description=SAID["preset"])
    objective: str | None = Field(default=None, description=SAID["objective"])
    vae: Path | None = Field(default=None, description=SAID["vae"])
    chunk: int = Field(default=64, ge=1, description="pictures whose features share a file: what a crash can cost")
    threads: int = Field(default=1, ge=1, description="of each worker; another number may change last digits")
    skip_broken: bool = Field(default=False, description="leave out pictures that cannot be read, instead of stopping")
    workers: int | None = Field(default=None, ge=1, description="processes; none: one for each processor core")
    shard: str | None = Field(
        default=None, description="i/n: only every n-th chunk, from the i-th on; merge joins shards"
    )
    out: Path = Field(default=Path("evaluation"), description="folder for report, pictures and features")

    if not TYPE_CHECKING:  # type checkers see the fields instead

        def __init__(self, **fields: object) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise RequestError(_one_line(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, fields: object) -> object:
        """One value where several may stand is a list of one; "fid,kid" is a list of two."""
        if not isinstance(fields, Mapping):
            return fields
        known = dict(cast("Mapping[str, Any]", fields))  # cast, Any: not validated yet
        for name in ("metrics", "features", "guidance", "steps"):
            if isinstance(value := known.get(name), str):
                known[name] = tuple(part.strip() for part in value.split(",") if part.strip())
            elif isinstance(value, int | float):
                known[name] = (value,)
        if not known.get("pictures") and known.get("model") is None and known.get("prompts") is not None:
            known["model"] = "icons"
        if isinstance(known.get("pictures"), str | Path):
            known["pictures"] = (str(known["pictures"]),)
        return known

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationSpec":
        if bool(self.pictures) == (self.model is not None):
            raise ValueError("exactly one of pictures and model says what is measured")
        if self.model is not None and self.prompts is None:
            raise ValueError("model: needs prompts to make pictures from: partiprompts, mlperf-coco, icons or a file")
        if self.pictures and (self.guidance or self.steps):
            raise ValueError("guidance, steps: are for pictures that a model makes; give model and prompts")
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(unknown("metric", metric, METRICS))
        if lacking := next((metric for metric in self.metrics if metric in COMPARING and not self.against), None):
            raise ValueError(f"metric {lacking!r} compares with reference pictures: give against")
        if "clip" in self.metrics and self.clip is None:
            raise ValueError("metric 'clip' needs clip: the path of a CLIP, or evaluator, the one in this package")
        if "copies" in self.metrics and self.training is None:
            raise ValueError("metric 'copies' needs training: the pictures that the model learnt from")
        if not self.features and self.chosen - {"clip"}:
            raise ValueError("features: at least one of inception, evaluator, clip:PATH, lite0")
        if not self.chosen:
            raise ValueError("nothing to measure: give against (FID, KID), clip (CLIP score) or training (copy rate)")
        if any(scale < 0 for scale in self.guidance) or any(count < 1 for count in self.steps):
            raise ValueError("guidance must be at least 0, steps at least 1")
        self.part  # noqa: B018  # refuses a wrong shard
        return self

    @property
    def chosen(self) -> frozenset[str]:
        """The metrics: those asked for, else what the pictures given allow."""
        if self.metrics:
            return frozenset(self.metrics)
        allowed = {"fid": self.against, "kid": self.against, "clip": self.clip, "copies": self.training}
        return frozenset(metric for metric, needed in allowed.items() if needed)

    @property
    def source(self) -> Source:
        """The model that makes pictures, and how it is loaded."""
        assert self.model is not None
        return Source(
            model=self.model, dtype=self.dtype, device=self.device, weights=self.weights,
            preset=self.preset, objective=self.objective, vae=self.vae,
        )  # fmt: skip

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of the shard, i from 1; (1, 1) is all."""
        if self.shard is None:
            return 1, 1
        first, slash, second = self.shard.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise ValueError(f"shard {self.shard!r}: i/n with 1 <= i <= n is expected, such as 1/4")
        return int(first), int(second)

    def work(self) -> dict[str, Any]:  # Any: JSON
        """What decides pictures and features: a folder is continued only with the same."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _FREE | _LATE}

    def settings(self) -> dict[str, Any]:  # Any: JSON
        """What decides the numbers, for the report."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _FREE}


def spec_of(fields: Mapping[str, Any]) -> EvaluationSpec:  # Any: the class validates them
    """The spec of these fields. Raises: RequestError."""
    return EvaluationSpec(**fields)


def read_spec(path: str | Path, **changes: Any) -> EvaluationSpec:  # Any: fields, which the class validates
    """The spec in a YAML file, with changes over it. Raises: RequestError."""
    try:
        data: object = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise RequestError(f"{str(path)!r}: settings such as 'pictures: FOLDER' are expected")
    return spec_of({**cast("dict[str, Any]", data), **changes})  # cast, Any: checked by the class


def _one_line(error: ValidationError) -> str:
    lines: list[str] = []
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        name = ".".join(map(str, detail["loc"]))
        if detail["type"] == "extra_forbidden":
            lines.append(unknown("setting", name, EvaluationSpec.model_fields))
        elif cause is not None:
            lines.append(str(cause))
        else:
            lines.append(f"{name} {detail['input']!r}: {detail['msg'].replace('Input should', 'must')}")
    return "; ".join(lines)
