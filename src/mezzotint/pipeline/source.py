"""Where a model is: a folder, a file, an id of the hub, or the one in this package. No torch."""

from pathlib import Path
from typing import NamedTuple

from mezzotint.errors import CheckpointError
from mezzotint.storage import asset

PACKAGED = "icons"  # what the model in this package is asked for as


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
