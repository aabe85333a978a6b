"""Pinned npm packages as folders: fetched with `npm pack`, verified by hash, unpacked without running anything."""

import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from mezzotint.errors import MezzotintError


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One package at one version. `sha256` is that of the tarball as the registry serves it."""

    name: str
    version: str
    sha256: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def unpacked(package: Package, cache: Path) -> Path:
    """Folder with the files of the package; fetched only if the cache does not have it.

    Raises: MezzotintError if npm is missing or fails, or if the tarball is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    tarball = cache / package.tarball
    if not tarball.exists():
        _pack(package, cache)
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != package.sha256:
        raise MezzotintError(f"{tarball}: sha256 {found} → {package.sha256} expected; delete the file and try again")
    folder = cache / "unpacked" / tarball.stem
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(tarball) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
    return folder / "package"


def _pack(package: Package, cache: Path) -> None:
    npm = shutil.which("npm")
    wanted = f"{package.name}@{package.version}"
    if npm is None:
        raise MezzotintError(f"npm is needed to fetch {wanted}: install Node.js, or put {package.tarball} into {cache}")
    result = subprocess.run([npm, "pack", wanted, "--silent"], cwd=cache, capture_output=True, text=True, check=False)
    if result.returncode:
        raise MezzotintError(f"npm pack {wanted} failed: {result.stderr.strip() or result.returncode}")
