"""The story of one picture, of one training step, and of an architecture: as data, as a page, as a drawing.

`mezzotint.explain` names this room and the function that people call, so the room itself can be called.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any  # Any: the fields of Request, which validates them

if TYPE_CHECKING:
    from mezzotint.explain.story import Story
    from mezzotint.pipeline.request import Request
    from mezzotint.pipeline.system import System


class _Room(ModuleType):
    def __call__(self, system: "System", request: "Request | None" = None, /, **fields: Any) -> "Story":
        """`mezzotint.explain.story.explain`."""
        from mezzotint.explain.story import explain

        return explain(system, request, **fields)


sys.modules[__name__].__class__ = _Room
