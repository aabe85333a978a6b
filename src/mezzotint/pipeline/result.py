"""What a request gave: pictures, and for each the record that can make it again."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: JSON, and fields of Request, which validates them

import numpy as np
from PIL import Image

from mezzotint.diffusion.sampling import NoiseLevel
from mezzotint.errors import RequestError
from mezzotint.images import SCHEMA, encode, read_metadata, write_file, write_infotext
from mezzotint.names import SAMPLERS
from mezzotint.pipeline.levels import approximated
from mezzotint.pipeline.request import Request

_NUMBERED = re.compile(r"(\d{5,})-\d+\.png")

Record = dict[str, Any]  # Any: JSON, schema 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The finished pictures. `metadata[i]` and `infotexts[i]` are what the file of `images[i]` carries."""

    images: Sequence[Image.Image]
    seeds: Sequence[int]
    warnings: Sequence[str]
    metadata: Sequence[Record]
    infotexts: Sequence[str]

    def png(self, i: int) -> bytes:
        """Picture i as a PNG file with both texts."""
        return encode(self.images[i], self.infotexts[i], self.metadata[i])

    def save(self, folder: str | Path) -> list[Path]:
        """Write `00001-SEED.png`… counting on from what is there; each file appears whole or not at all.

        Raises: RequestError if the folder cannot be written to.
        """
        folder = Path(folder)
        taken = [int(found[1]) for file in folder.glob("*.png") if (found := _NUMBERED.fullmatch(file.name))]
        first = max(taken, default=0) + 1
        paths = [folder / f"{first + i:05}-{seed}.png" for i, seed in enumerate(self.seeds)]
        for i, path in enumerate(paths):
            write_file(path, self.png(i))
        return paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Expectation:
    """Whether a picture made again will have equal bits; `differences` says what speaks against it."""

    differences: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """True if nothing that decides about bits has changed."""
        return not self.differences


def levels_hash(levels: Sequence[NoiseLevel]) -> str:
    """Ten hex digits that name a trajectory: sha256 of its sigmas and timesteps to 9 digits."""
    text = json.dumps([[f"{level.sigma:.9g}", f"{level.t:.9g}"] for level in levels])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def record(
    *,
    asked: Request,
    resolved: Request,
    seed: int,
    levels: Sequence[NoiseLevel],
    model: Mapping[str, Mapping[str, object]],
    execution: Mapping[str, object],
    warnings: Sequence[str],
) -> Record:
    """The `mezzotint` chunk of one picture; `resolved` is the request with every default filled in."""
    pictures = (resolved.image, resolved.mask, resolved.reference)
    return {
        "schema": SCHEMA,
        "request": asked.model_dump(mode="json", exclude_defaults=True),
        "resolved": {
            "request": resolved.model_copy(update={"seed": seed, "count": 1}).model_dump(
                mode="json", exclude_none=True
            ),
            "sigmas": {"hash": levels_hash(levels), "first": levels[0].sigma, "last": levels[-1].sigma},
        },
        "model": dict(model),
        "approximated": approximated(resolved.level, execution, str(model["unet"]["sha256"])),
        "execution": dict(execution),
        "parents": [picture.sha256 for picture in pictures if picture is not None],
        "warnings": list(warnings),
    }


def infotext(
    resolved: Request, seed: int, model: Mapping[str, Mapping[str, object]], versions: Mapping[str, object]
) -> str:
    """The `parameters` text of one picture, in the vocabulary and order of the AUTOMATIC1111 web UI."""
    main = model["unet"]
    is_edit = resolved.image is not None
    return write_infotext(
        resolved.prompt,
        resolved.negative or "",
        {
            "Steps": resolved.steps,
            "Sampler": SAMPLERS[str(resolved.sampler)].title,
            "Schedule type": resolved.spacing,
            "CFG scale": resolved.guidance,
            "Seed": seed,
            "Size": f"{resolved.width}x{resolved.height}",
            "Model hash": str(main["sha256"])[:10],
            "Model": str(main["name"]),
            "Denoising strength": resolved.strength if is_edit else None,
            "Clip skip": resolved.clip_skip if (resolved.clip_skip or 1) > 1 else None,
            "RNG": "CPU",
            "Mask blur": resolved.feather if resolved.mask else None,
            "Refiner": resolved.refiner,
            "Refiner switch at": resolved.refiner_at if resolved.refiner else None,
            "Eta": resolved.options.get("eta"),
            "Version": f"mezzotint {versions['mezzotint']}",
        },
    )


def recorded_request(source: Path | bytes, **changes: Any) -> tuple[Request, Record]:
    """The request that made a picture, from its file; `changes` replace fields, for pictures that have moved.

    Raises: RequestError if the file has no record of ours.
    """
    found = read_metadata(source).record
    if found is None:
        raise RequestError(
            f"{str(source)!r} carries no mezzotint record; only pictures made by mezzotint can be replayed"
            if isinstance(source, Path)
            else "the picture carries no mezzotint record; only pictures made by mezzotint can be replayed"
        )
    if "resolved" not in found:
        raise RequestError("the picture is a grid of several; its record holds the request of every cell, replay one")
    known = Request.model_fields
    fields = {key: value for key, value in found["resolved"]["request"].items() if key in known}
    return Request(**fields | changes), found


def compare(found: Record, model: Mapping[str, Mapping[str, object]], execution: Mapping[str, object]) -> Expectation:
    """What differs between a record and what would run now."""
    differences: list[str] = []
    for role, now in model.items():
        then = found["model"].get(role, {})
        if then.get("sha256") != now["sha256"]:
            differences.append(f"{role}: sha256 {str(now['sha256'])[:10]}, was {str(then.get('sha256'))[:10]}")
    for key, value in execution.items():
        before = found["execution"].get(key)
        if before != value:
            differences.append(f"{key}: {value!r}, was {before!r}")
    return Expectation(differences=tuple(differences))


def largest_difference(one: Image.Image, other: Image.Image) -> int | None:
    """The largest difference of any channel of any pixel, 0 … 255; None if the sizes differ."""
    if one.size != other.size:
        return None
    a, b = (np.asarray(image.convert("RGB")).astype(np.int16) for image in (one, other))
    return int(np.abs(a - b).max())
