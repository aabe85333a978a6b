"""How many tokens of a prompt a model reads. No torch."""

from functools import lru_cache
from pathlib import Path
from typing import Any  # Any: JSON

from mezzotint.errors import CheckpointError
from mezzotint.prompts.tokenizer import Tokenizer, bundled, from_folder


def counted(model: str, text: str, room: int) -> dict[str, Any]:  # Any: JSON
    """Tokens of the text, how many the model has room for, and the words that fall off."""
    tokenizer = _tokenizer(model)
    text = text.encode("utf-8", "replace").decode()
    return {"count": len(tokenizer.encode(text)), "room": room, "dropped": list(tokenizer.dropped(text, room=room))}


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Tokenizer:
    """The first tokenizer of a model's folder; files and folders without one use CLIP's."""
    folder = Path(model)
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).is_dir():
            try:
                return from_folder(folder / name)
            except CheckpointError:
                break
    return bundled()
