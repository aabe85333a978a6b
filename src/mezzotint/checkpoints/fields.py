"""Typed access to the JSON configs of models: every value is checked, errors name the file and the key."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from mezzotint.checkpoints.files import read_json
from mezzotint.errors import CheckpointError, ConfigError

T = TypeVar("T")

LARGEST = 2**20  # of any number in a config: a hostile one must not build forever
DEEPEST = 256  # transformer layers
LONGEST = 32  # levels, channels of a latent


@dataclass(frozen=True, slots=True)
class Fields:
    """A config.json with typed access; errors name the file and the key."""

    path: Path
    values: Mapping[str, object]

    @classmethod
    def of(cls, path: str | Path) -> "Fields":
        """The fields of a file."""
        return cls(Path(path), read_json(path))

    def error(self, key: str, what: str) -> CheckpointError:
        """What is wrong with a key."""
        return CheckpointError(f"{self.path}: {key} {what}"[:400])

    def get(self, key: str, default: object = None) -> object:
        """The value as it is; null counts as absent where a default is given."""
        value = self.values.get(key, default)
        return default if value is None else value

    def nested(self, key: str) -> "Fields":
        """The fields of an object inside; of an empty one if it is something else."""
        value = self.values.get(key)
        values = cast("dict[str, object]", value) if isinstance(value, dict) else {}  # keys of JSON objects are strings
        return Fields(self.path, values)

    def must(self, fixed: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse values that mean a network that does not exist here."""
        for key, allowed in fixed.items():
            if self.values.get(key, allowed[0]) not in allowed:
                shown = " or ".join(repr(value) for value in allowed)
                raise self.error(key, f"= {self.values[key]!r} is not supported; {shown} is")

    def integer_of(self, key: str, value: object, *, high: int = LARGEST) -> int:
        """A whole number from 0 to `high`."""
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
            raise self.error(key, f"= {value!r}: a whole number from 0 to {high:,} is expected")
        return value

    def flag_of(self, key: str, value: object) -> bool:
        """A boolean."""
        if not isinstance(value, bool):
            raise self.error(key, f"= {value!r}: true or false is expected")
        return value

    def depth_of(self, key: str, value: object) -> int | tuple[int, ...]:
        """Transformer layers of one level: a number, or one for each block."""
        if not isinstance(value, list):
            return self.integer_of(key, value, high=DEEPEST)
        depths = tuple(self.integer_of(key, item, high=DEEPEST) for item in cast("list[object]", value))  # just seen
        return depths[0] if len(set(depths)) == 1 else depths

    def integer(self, key: str, default: int, *, high: int = LARGEST) -> int:
        """A whole number, or the default."""
        return self.integer_of(key, self.get(key, default), high=high)

    def number(self, key: str, default: float) -> float:
        """A number, or the default."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
            raise self.error(key, f"= {value!r}: a number is expected")
        return float(value)

    def sequence(self, key: str, default: Sequence[object]) -> list[object]:
        """A list of 1 to `LONGEST` values, or the default."""
        value = self.get(key, list(default))
        if not isinstance(value, list):
            raise self.error(key, f"= {value!r}: a list is expected")
        items = cast("list[object]", value)  # element types are checked by the caller
        if not 1 <= len(items) <= LONGEST:
            raise self.error(key, f"has {len(items)} values; 1 to {LONGEST} are expected")
        return items

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers."""
        return tuple(self.integer_of(key, item) for item in self.sequence(key, default))

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of numbers, or None."""
        if self.get(key) is None:
            return None
        return tuple(Fields(self.path, {key: item}).number(key, 0.0) for item in self.sequence(key, ()))

    def names(self, key: str, default: tuple[str, ...], count: int, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """A list of one name per level, out of those that are allowed."""
        names = tuple(str(item) for item in self.sequence(key, default))
        if len(names) != count:
            raise self.error(key, f"has {len(names)} blocks, block_out_channels {count}")
        if wrong := set(names) - set(allowed):
            raise self.error(key, f"{min(wrong)!r} is not supported; {' or '.join(allowed)} is")
        return names

    def per_level(self, key: str, default: object, count: int, one: Callable[[str, object], T]) -> list[T]:
        """One value for each level, from a list or from one for all."""
        value = self.get(key, default)
        items = self.sequence(key, ()) if isinstance(value, list) else [value] * count
        if len(items) != count:
            raise self.error(key, f"has {len(items)} values, block_out_channels {count}")
        return [one(key, item) for item in items]

    def same(self, key: str, default: int, count: int, *, is_optional: bool = False) -> int:
        """A number that must be the same for all levels; 0 for null where that is allowed."""
        if is_optional and key in self.values and self.values[key] is None:
            return 0
        numbers = set(self.per_level(key, default, count, self.integer_of))
        if len(numbers) > 1:
            raise self.error(key, f"= {self.values[key]!r}: different values per level are not supported")
        return numbers.pop()

    def build(self, make: Callable[[], T]) -> T:
        """The config, with the file named if it contradicts itself."""
        try:
            return make()
        except (ConfigError, ZeroDivisionError) as error:
            raise CheckpointError(f"{self.path}: {error}") from error
