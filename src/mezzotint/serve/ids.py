"""Names that the server gives to things: a letter for what it is, then time and chance. Clients name nothing else.

Ids of one kind sort by time: 48 bits of milliseconds, then 80 random bits, in 26 letters and digits.
"""

import hashlib
import re
import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_FORM = re.compile(rf"([jpum])_([{_ALPHABET}]{{{_LENGTH}}})", re.ASCII)
ID_PATTERN = rf"^[jpum]_[{_ALPHABET}]{{{_LENGTH}}}$"

_lock = threading.Lock()
_latest = 0


def new_id(kind: str) -> str:
    """An id that was never given before and sorts after all of its process: j job, p picture, u upload."""
    global _latest
    with _lock:
        _latest = max(_latest + 1, time.time_ns() // 1_000_000)
        moment = _latest
    return f"{kind}_{_spelt(moment << 80 | secrets.randbits(80))}"


def named_id(kind: str, name: str) -> str:
    """The id of something that has a name already, always the same one: m model."""
    return f"{kind}_{_spelt(int.from_bytes(hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()[:16]))}"


def is_id(text: object, kinds: str = "jpum") -> bool:
    """Whether this is an id of one of these kinds; anything else names nothing and is never looked up."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    return found is not None and found[1] in kinds


def moment_of(name: str) -> float:
    """Seconds since 1970 at which an id was given."""
    number = 0
    for sign in name[2:12]:
        number = number * 32 + _ALPHABET.index(sign)
    return number / 1000


def _spelt(number: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))
