"""One Brownian path per picture, for samplers that integrate a stochastic differential equation.

The same path is seen at every step count: asking for more, fewer or other points never changes a point asked before.
So pictures of SDE samplers converge as steps are added, which independent draws do not.

Source: Levy's midpoint construction, as in the Brownian trees of Li et al. 2020, arXiv:2001.01328.
"""

import torch
from torch import Tensor

_DEPTH = 30  # halvings: below any distance between noise levels
_KEYS = 2**62


class BrownianPath:
    """Unit Gaussians between noise levels in [0, sigma_max], each an increment of one path over its own length."""

    def __init__(self, shape: tuple[int, ...], sigma_max: float, generator: torch.Generator) -> None:
        """Takes one number from the generator: the key of the whole path."""
        self._shape, self._sigma_max = shape, sigma_max
        self._key = int(torch.randint(_KEYS, (), generator=generator))
        self._known: dict[float, Tensor] = {}

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor:
        """The increment between two levels, scaled to variance 1; float32 on the CPU."""
        increment = self._at(sigma_to) - self._at(sigma_from)
        return (increment / abs(sigma_to - sigma_from) ** 0.5).float()

    def _at(self, sigma: float) -> Tensor:
        """The path at one level, float64: increments are small differences of it."""
        if sigma not in self._known:
            left, right = 0.0, self._sigma_max
            at_left = torch.zeros(self._shape, dtype=torch.float64)
            at_right = self._draw(1) * right**0.5
            node = 2
            for _ in range(_DEPTH):
                middle = (left + right) / 2
                at_middle = (at_left + at_right) / 2 + self._draw(node) * ((right - left) ** 0.5 / 2)
                if sigma < middle:
                    right, at_right, node = middle, at_middle, 2 * node
                else:
                    left, at_left, node = middle, at_middle, 2 * node + 1
            self._known[sigma] = at_left + (at_right - at_left) * ((sigma - left) / (right - left))
        return self._known[sigma]

    def _draw(self, node: int) -> Tensor:
        """The Gaussian of one node of the tree, a function of key and node alone."""
        own = torch.Generator("cpu").manual_seed((self._key + node * 0x9E3779B97F4A7C15) % 2**63)
        return torch.randn(self._shape, generator=own, dtype=torch.float64)
