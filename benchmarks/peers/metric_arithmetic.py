"""What pytorch-fid, clean-fid and torch-fidelity make of the same features: FID, KID, Inception score, precision.

    sh benchmarks/peers/fid.sh FOLDER && FOLDER/bin/python benchmarks/peers/metric_arithmetic.py > numbers.json

The numbers are kept as tests/golden/metric_arithmetic.json; the environment has SciPy < 1.18 (two of them use what 1.18
removed) and not mezzotint. The tests make the same features with `features` and compare. No network and no weights:
features are numbers from a seeded generator. All three import torchvision, which does not import beside the CPU build
of torch: empty modules stand in for it, since none of this arithmetic uses it.
"""

import json
import sys
import types
import warnings
from importlib.metadata import version

import numpy as np

CASES = {  # name: made, reference, width
    "plenty": (1500, 2000, 64),
    "few": (60, 80, 96),  # fewer pictures than numbers in a feature
    "wide": (700, 600, 256),
}


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Made and reference features in float32: rectified and correlated, as a network's are; the made ones shifted."""
    made, reference, width = CASES[name]
    draw = np.random.default_rng(sum(CASES[name]))
    scale = np.logspace(0, -1.5, width)
    turn = np.linalg.qr(draw.standard_normal((width, width)))[0]
    x = draw.standard_normal((made, width)) * scale @ turn + 0.1
    y = (
        draw.standard_normal((reference, width)) * scale[::-1] @ turn * 0.3
        + draw.standard_normal((reference, width)) * scale @ turn
    )
    return np.maximum(x, 0).astype(np.float32), np.maximum(y, 0).astype(np.float32)


class _Empty(types.ModuleType):
    """A module in which every name is one of its parts, or an empty class."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def main() -> None:
    """Print the numbers of every case, and of what versions they are."""
    for part in (
        "",
        ".transforms",
        ".transforms.functional",
        ".models",
        ".models.inception",
        ".models.vgg",
        ".datasets",
    ):
        sys.modules[f"torchvision{part}"] = _Empty(f"torchvision{part}")
    warnings.simplefilter("ignore")  # SciPy 1.17 announces what 1.18 removed
    import cleanfid.fid
    import pytorch_fid.fid_score
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    found: dict[str, object] = {}
    for name in CASES:
        made, reference = features(name)
        x, y = torch.from_numpy(made.astype(np.float64)), torch.from_numpy(reference.astype(np.float64))
        moments = [
            (side.mean(0), np.cov(side, rowvar=False))
            for side in (made.astype(np.float64), reference.astype(np.float64))
        ]
        size = min(1000, len(made) // 2, len(reference) // 2)
        np.random.seed(0)
        fidelity = [fid_features_to_statistics(side) for side in (x, y)]
        kid = kid_features_to_metric(x, y, kid_subsets=100, kid_subset_size=size, verbose=False)
        prc = prc_features_to_metric(x, y, verbose=False)
        score = isc_features_to_metric(8 * x, splits=10, shuffle=False)
        found[name] = {
            "sum": float(made.sum(dtype=np.float64)),
            "fid": {
                "pytorch-fid": float(pytorch_fid.fid_score.calculate_frechet_distance(*moments[0], *moments[1])),
                "clean-fid": float(cleanfid.fid.frechet_distance(*moments[0], *moments[1])),
                "torch-fidelity": fid_statistics_to_metric(*fidelity, False)["frechet_inception_distance"],
            },
            "kid": {
                "size": size,
                "torch-fidelity": kid["kernel_inception_distance_mean"],
                "torch-fidelity deviation": kid["kernel_inception_distance_std"],
                "clean-fid": cleanfid.fid.kernel_distance(made, reference, 100, size),
            },
            "precision": prc["precision"],
            "recall": prc["recall"],
            "inception score": {"mean": score["inception_score_mean"], "deviation": score["inception_score_std"]},
        }
    packages = ("pytorch-fid", "clean-fid", "torch-fidelity", "scipy", "numpy", "torch")
    found["versions"] = {package: version(package) for package in packages}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
