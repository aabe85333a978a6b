"""What can go wrong in a way that a caller would catch.

    MezzotintError
    ├── ConfigError       a value that no model, recipe or machine can have   (also a ValueError)
    ├── CheckpointError   a file that is damaged, unknown or does not match
    └── RequestError      something asked for that cannot be done             (also a ValueError)

Command line exit codes: RequestError and ConfigError 2, every other MezzotintError 1.
"""

import difflib
from collections.abc import Iterable


class MezzotintError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(MezzotintError, ValueError):
    """A configuration that contradicts itself or names something unknown."""


class CheckpointError(MezzotintError):
    """A model file that cannot be read, is not what it claims, or does not fit the model."""


class RequestError(MezzotintError, ValueError):
    """A request for a picture that cannot be carried out as asked."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One-line message for a name that is not among the known ones, with the nearest suggestion.

    >>> unknown("sampler", "dpmp_2m", ["ddim", "dpmpp_2m"])
    "unknown sampler 'dpmp_2m'; did you mean 'dpmpp_2m'? one of: ddim, dpmpp_2m"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}one of: {', '.join(names)}"
