"""Which model, how it is loaded, and where it is: a path, an id of the hub, or the one in this package. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mezzotint.errors import CheckpointError
from mezzotint.storage import asset

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

PACKAGED = "icons"  # what the model in this package is asked for as


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Which model, and how it is loaded: the arguments of `mezzotint.load`.

    Those with a help are flags of every verb that loads a model.
    """

    model: str = field(default=PACKAGED, metadata={"help": "checkpoint: folder, file, ORG/NAME, or icons"})
    dtype: str = field(default="auto", metadata={"help": "precision of the model: auto, float32, bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "where the model runs: auto, cpu, cuda, mps"})
    weights: str = field(
        default="auto",
        metadata={"help": "the U-Net's: auto, int8 (half the memory) or w8a8 (faster, too): approximations"},
    )
    preset: str | None = field(
        default=None, metadata={"help": "family of the checkpoint, if it should not be detected"}
    )
    objective: str | None = field(
        default=None,
        metadata={"help": "what the U-Net predicts, if it should not be detected: epsilon, v_prediction or sample"},
    )
    vae: Path | None = field(default=None, metadata={"help": "stand-alone VAE to use instead of the checkpoint's own"})
    unclip_stats: Path | None = field(
        default=None, metadata={"help": "statistics of image embeddings, for files of unCLIP-L"}
    )
    kernels: str | Mapping[str, Any] = "auto"  # Any: a record's own, which `load` checks

    def load(self) -> "System":
        """The model, with its networks mapped from the file."""
        from mezzotint.pipeline.system import load

        how = asdict(self)
        return load(how.pop("model"), **how)


SAID: dict[str, str] = {one.name: one.metadata["help"] for one in fields(Source) if one.metadata}
"""What the fields of `Source` say of themselves: the help of flags."""


class Place(NamedTuple):
    """Where a model is, what it was asked for as, what it is called, and its revision if it came from the hub."""

    path: Path
    source: str
    name: str
    revision: str | None = None


def locate(source: str | Path, *, revision: str | None = None, variant: str | None = None) -> Place:
    """The place of a model; the only function that may open a connection, and only for a hub id.

    Raises: CheckpointError if there is no such model.
    """
    path = local(source)
    if path is None:
        repository, _, at = str(source).partition("@")
        return _fetched(repository, at or revision, variant)
    if str(source) == PACKAGED:
        return Place(path, PACKAGED, PACKAGED)
    return Place(path, str(source), path.stem if path.is_file() else path.resolve().name)


def local(source: str | Path) -> Path | None:
    """The path of a model on this machine; None for a hub id, of which only the hub knows whether there is one.

    Raises: CheckpointError if it can be neither.
    """
    if str(source) == PACKAGED:
        if (packaged := packaged_model()) is None:
            raise CheckpointError(
                f"this installation has no packaged model {PACKAGED!r}; name a checkpoint: a folder, a file or ORG/NAME"
            )
        return packaged
    path = Path(source).expanduser()
    if path.exists():
        return path
    parts = str(source).partition("@")[0].split("/")
    if (
        len(parts) != 2
        or not all(parts)
        or str(source).startswith((".", "~"))
        or path.suffix in {".safetensors", ".ckpt"}
    ):
        raise CheckpointError(f"{str(source)!r}: no such file or folder, and not a hub id (ORG/NAME)")
    return None


def packaged_model() -> Path | None:
    """The folder of the model in this package, if this installation has it."""
    path = asset(PACKAGED)
    return path if (path / "model_index.json").exists() else None


def _fetched(repository: str, revision: str | None, variant: str | None) -> Place:
    """The folder in Hugging Face's cache, completed from the hub; safetensors and texts only."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]  # of its progress bar
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=["*.json", "*.txt", "*.model", weights, f"*/{weights}"]
        )
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{repository!r} is neither a path nor to be had from the hub: {first}") from None
    return Place(Path(folder), repository, repository.rpartition("/")[2], Path(folder).name)
