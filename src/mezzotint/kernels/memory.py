"""What a U-Net may keep from one query of a picture to the next: an approximation, asked for by a level.

The lowest resolutions change slowly along a trajectory. At every `every`-th query the whole network runs, and the map
that enters the last two blocks is kept; between, only the first block and the last two run, on the kept map.

Source: Ma et al. 2024, arXiv:2312.00858 (DeepCache).
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Memory:
    """Of one picture and one network. Queries are counted, so that what is approximated never depends on anything else.

    `every` 1 reuses nothing; `first` is how many queries run whole at the start, where the composition is decided.
    """

    every: int
    first: int = 0
    _asked: int = field(default=0, init=False)
    _kept: Tensor | None = field(default=None, init=False)

    def recall(self, rows: int, shape: tuple[int, int]) -> Tensor | None:
        """The kept map for the first `rows` rows of the query that begins; None if the whole network has to run.

        The conditional row comes first, so that a query of fewer rows can use what was kept for more.
        """
        number, self._asked = self._asked, self._asked + 1
        is_whole = number < self.first or (number - self.first) % self.every == 0
        kept = self._kept
        if is_whole or kept is None or len(kept) < rows or kept.shape[-2:] != shape:
            return None
        return kept[:rows]

    def keep(self, deep: Tensor) -> None:
        """Remember the map of a query that ran whole."""
        self._kept = deep
