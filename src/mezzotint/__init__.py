"""mezzotint: the whole Stable Diffusion family as one small, exact, fast, readable package.

    system = mezzotint.load("path/to/checkpoint")
    result = mezzotint.generate(system, prompt="a red fox", steps=20, seed=1)
    result.save("outputs")

Names are looked up when they are first used: `import mezzotint` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mezzotint.errors import CheckpointError, ConfigError, MezzotintError, RequestError
    from mezzotint.evaluation.evaluate import Evaluation, evaluate
    from mezzotint.evaluation.spec import EvaluationSpec
    from mezzotint.explain.story import Story, explain
    from mezzotint.pipeline.generate import Result, generate, replay, stream
    from mezzotint.pipeline.request import Progress, Request
    from mezzotint.pipeline.system import System, load

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Evaluation",
    "EvaluationSpec",
    "MezzotintError",
    "Progress",
    "Request",
    "RequestError",
    "Result",
    "Story",
    "System",
    "evaluate",
    "explain",
    "generate",
    "load",
    "replay",
    "stream",
]

_HOME = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Evaluation": "evaluation.evaluate",
    "EvaluationSpec": "evaluation.spec",
    "MezzotintError": "errors",
    "Progress": "pipeline.request",
    "Request": "pipeline.request",
    "RequestError": "errors",
    "Result": "pipeline.generate",
    "Story": "explain.story",
    "System": "pipeline.system",
    "evaluate": "evaluation.evaluate",
    "explain": "explain.story",
    "generate": "pipeline.generate",
    "load": "pipeline.system",
    "replay": "pipeline.generate",
    "stream": "pipeline.generate",
}


def __getattr__(name: str) -> object:
    """The public name, from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mezzotint.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
