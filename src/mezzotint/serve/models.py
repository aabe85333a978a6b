"""Which models a server can load: the packaged one, the one it was started with, and those in a folder. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mezzotint.pipeline.source import local, packaged_model
from mezzotint.serve.ids import named_id

FILES = {".safetensors", ".ckpt"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be loaded; clients know its id and name."""

    id: str
    name: str
    path: str  # what `mezzotint.load` takes

    @property
    def bytes(self) -> int | None:
        """Size of its files; None for one that is not on this machine yet."""
        path = Path(self.path)
        if path.is_file():
            return path.stat().st_size
        if not path.is_dir():
            return None
        return sum(file.stat().st_size for file in path.rglob("*") if file.suffix in FILES and file.is_file())


class Shelf:
    """The models by id. A folder is looked through again each time it is asked about."""

    def __init__(self, first: str, folder: Path | None = None) -> None:
        """`first` is what is loaded at the start: a path, an id of the hub, or "icons", the one in this package.

        Raises: CheckpointError if it can be none of these.
        """
        self.first = str(local(first) or first)
        self.folder = folder

    def entries(self) -> list[Entry]:
        """All of them, the first one first; names are unique."""
        found: dict[str, Entry] = {}
        packaged = packaged_model()
        for source in (self.first, *([str(packaged)] if packaged else []), *self._in_folder()):
            path = Path(source)
            where = str(path.resolve()) if path.exists() else source
            name = path.resolve().name if path.is_dir() else path.stem if path.is_file() else source
            names = {entry.name for entry in found.values() if entry.path != where}
            number = 2
            unique = name
            while unique in names:
                unique, number = f"{name} {number}", number + 1
            found.setdefault(where, Entry(named_id("m", where), unique, where))
        return list(found.values())

    def find(self, name: str) -> Entry | None:
        """The model of this id, name, or title such as other programs write: `name.safetensors [0123456789]`."""
        word = name.partition(" [")[0]
        return next(
            (e for e in self.entries() if name in (e.id, e.name) or word in (e.name, f"{e.name}{Path(e.path).suffix}")),
            None,
        )

    def _in_folder(self) -> Iterable[str]:
        if self.folder is None or not self.folder.is_dir():
            return []
        inside = sorted(self.folder.iterdir())
        return [
            str(path)
            for path in inside
            if (path.is_dir() and (path / "model_index.json").is_file()) or (path.is_file() and path.suffix in FILES)
        ]
