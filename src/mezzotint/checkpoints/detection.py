"""What was found out about a model file: the answer, why it was given, and how it is shown.

How far an answer can be trusted:

    certain   the file says so: in shapes that no other model of the family has, in metadata or in its own config
    likely    true of nearly every file that looks like this one
    guess     the file does not say; if pictures come out as noise, load it with the other objective
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

from mezzotint.checkpoints.files import Header, TensorInfo, read_sharded_header
from mezzotint.checkpoints.signatures import Layout, Variant, role_of
from mezzotint.errors import CheckpointError

Confidence = Literal["certain", "likely", "guess"]
Objective = Literal["epsilon", "v_prediction", "sample"]

MAX_METADATA_ENTRIES = 20
MAX_METADATA_CHARACTERS = 200

# part of a diffusers folder -> (role, stem of its weight files)
FOLDERS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text_encoder": ("text", "model"),
    "text_encoder_2": ("text_2", "model"),
    "image_encoder": ("image", "model"),
}
STEMS = ("diffusion_pytorch_model", "model")


class Reason(NamedTuple):
    """Why an answer was given: the rule in words, and the key or field with what was found there."""

    rule: str
    evidence: str
    confidence: Confidence
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """What a file or folder is. `preset` is the base model of a component or adapter, None if shapes cannot tell."""

    path: Path
    component: str  # "checkpoint" for a whole model, else "unet", "vae", "text", "lora", …
    title: str
    preset: str | None
    variant: Variant | None = None
    objective: Objective | None = None  # None for what predicts nothing
    layout: Layout
    prefix: str = ""  # what stands before the names of a U-Net
    reason: Reason  # of the preset
    objective_reason: Reason | None = None
    is_zero_snr: bool = False  # trained with zero terminal signal-to-noise ratio
    has_ema: bool = False
    missing: tuple[str, ...] = ()  # roles that a whole model has and this one lacks
    advice: str = ""

    @property
    def weakest(self) -> Reason:
        """The reason that decides how far the whole can be trusted."""
        order: tuple[Confidence, ...] = ("certain", "likely", "guess")
        reasons = [self.reason, *([self.objective_reason] if self.objective_reason else [])]
        return max(reasons, key=lambda reason: order.index(reason.confidence))

    @property
    def rule(self) -> str:
        """The rule behind the weakest answer."""
        return self.weakest.rule

    @property
    def evidence(self) -> str:
        """The key or field behind the weakest answer."""
        return self.weakest.evidence

    @property
    def confidence(self) -> Confidence:
        """How far the weakest answer can be trusted."""
        return self.weakest.confidence

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Other values that the weakest answer could have, to be asked for by name."""
        return self.weakest.alternatives


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One network inside a file or folder; `problem` says why its header could not be read."""

    role: str
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict[str, int])  # dtype -> tensors that have it
    problem: str = ""


def refusal(what: str, where: str, advice: str) -> CheckpointError:
    """The error for a file that is not loaded: three lines that say what it is, where that shows, what to do."""
    return CheckpointError("\n  ".join(" ".join(line.split()) for line in (what, where, advice)))


def parts(detection: Detection, header: Header | None = None) -> tuple[Part, ...]:
    """The networks of a file (`header`) or, without one, of the folder that was detected."""
    if header is not None:
        roles: dict[str, dict[str, TensorInfo]] = {}
        for key, info in header.tensors.items():
            role = role_of(key) if detection.component == "checkpoint" else detection.component
            roles.setdefault(role, {})[key] = info
        return tuple(_part(role, tensors) for role, tensors in roles.items())
    found: list[Part] = []
    for folder, role, stem in _weights(detection):
        try:
            found.append(_part(role, read_sharded_header(folder, stem).tensors))
        except CheckpointError as error:
            found.append(Part(role=role, problem=str(error)))
    return tuple(found)


def describe(detection: Detection, header: Header | None = None) -> dict[str, object]:
    """All of a detection as plain data for JSON; `header` is that of the file, None for a folder.

    Metadata is text of unknown origin: it is shortened here and has to be escaped wherever it is shown.
    """
    metadata = header.metadata if header else {}
    return {
        "path": str(detection.path),
        "component": detection.component,
        "title": detection.title,
        "preset": detection.preset,
        "variant": detection.variant,
        "objective": detection.objective,
        "zero_snr": detection.is_zero_snr,
        "layout": detection.layout,
        "decided_by": detection.reason._asdict(),
        "objective_decided_by": detection.objective_reason._asdict() if detection.objective_reason else None,
        "parts": {
            part.role: {
                "tensors": part.tensors,
                "parameters": part.parameters,
                "bytes": part.bytes,
                "dtypes": part.dtypes,
                **({"problem": part.problem} if part.problem else {}),
            }
            for part in parts(detection, header)
        },
        "missing": list(detection.missing),
        "ema": detection.has_ema,
        "advice": detection.advice,
        "metadata": {_short(key): _short(metadata[key]) for key in sorted(metadata)[:MAX_METADATA_ENTRIES]},
    }


def lines(detection: Detection, header: Header | None = None) -> list[str]:
    """A detection for people: what it is, which key decided, what is in it, what is missing."""
    named = f"preset {detection.preset}, " if detection.preset else ""
    shown = [f"{detection.title} ({named}{detection.layout} layout)", f"decided by {_because(detection.reason)}"]
    if detection.objective and detection.objective_reason:
        zero = ", zero terminal SNR" if detection.is_zero_snr else ""
        shown.append(f"objective {detection.objective}{zero}: {_because(detection.objective_reason)}")
    for part in parts(detection, header):
        dtypes = ", ".join(sorted(part.dtypes))
        shown.append(f"{part.role}: " + (part.problem or f"{part.parameters:,} parameters, {dtypes}"))
    if detection.missing:
        shown.append(f"missing: {', '.join(detection.missing)}")
    return [*shown, detection.advice] if detection.advice else shown


def _weights(detection: Detection) -> list[tuple[Path, str, str]]:
    """Folders with weights, their role and the stem of their files."""
    path = detection.path
    if detection.component == "checkpoint":
        return [(path / name, role, stem) for name, (role, stem) in FOLDERS.items() if (path / name).is_dir()]
    return [(path, detection.component, stem) for stem in STEMS if any(path.glob(f"{stem}*.safetensors"))]


def _part(role: str, tensors: Mapping[str, TensorInfo]) -> Part:
    return Part(
        role=role,
        tensors=len(tensors),
        parameters=sum(prod(info.shape) for info in tensors.values()),
        bytes=sum(info.nbytes for info in tensors.values()),
        dtypes=dict(Counter(info.dtype for info in tensors.values())),
    )


def _because(reason: Reason) -> str:
    otherwise = f"; else {' or '.join(reason.alternatives)}" if reason.alternatives else ""
    return f"{reason.rule}: {reason.evidence} ({reason.confidence}{otherwise})"


def _short(text: str) -> str:
    cut = text[:MAX_METADATA_CHARACTERS]
    return "".join(c if c.isprintable() else " " for c in cut) + ("…" if len(text) > len(cut) else "")
