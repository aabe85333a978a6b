"""CMMD: discrepancy of CLIP features under a Gaussian kernel; no assumption about their distribution.

The published form is the biased one, which adds about 2 (1 - mean k) / n to equal distributions; it is kept, because
numbers are compared with published ones. Comparable only for one CLIP: papers use ViT-L/14 at 336 pixels.

Letters: n, m pictures, d feature width.
Source: Jayasumana et al. 2024, arXiv:2401.09603, section 4; sigma 10 and the factor 1000 are theirs.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate
from mezzotint.evaluation.mmd import BLOCKS, check_features, dealt, estimate, kernel_sums

SIGMA, SCALE = 10.0, 1000.0


def gaussian(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """exp(-|x - y|² / (2 · 10²)) for every pair of rows of length 1."""
    return (x @ y.T).sub_(1).div_(SIGMA**2).exp_()


def cmmd(made: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], *, blocks: int = BLOCKS) -> Estimate:
    """1000 times the squared discrepancy of features, which are brought to length 1 first, with a jackknife interval.

    Raises: ConfigError for fewer than 2 features, of zero length, of different widths, or not finite.
    """
    check_features(made, reference)
    if not all(bool((features != 0).any(1).all()) for features in (made, reference)):
        raise ConfigError("cmmd: a feature of length 0 has no direction; is a picture empty?")
    # float64: kernel values differ from 1 by a hundredth, and their means by 1e-5
    x, y = F.normalize(dealt(made).double(), dim=1), F.normalize(reference.double(), dim=1)
    return estimate(kernel_sums(x, y, gaussian, blocks), is_unbiased=False, scale=SCALE)
