"""What other programs made of features that can be made again: golden/metric_arithmetic.json and its script."""

import json
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "metric_arithmetic.json").read_text())
CASES = [name for name in GOLDEN if name != "versions"]


@lru_cache(maxsize=1)
def golden_features(case: str) -> tuple[Tensor, Tensor]:
    """Made and reference features of benchmarks/peers/metric_arithmetic.py, made again."""
    spec = spec_from_file_location("metric_arithmetic", ROOT / "benchmarks" / "peers" / "metric_arithmetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made, reference = (torch.tensor(side) for side in module.features(case))
    assert float(made.double().sum()) == pytest.approx(GOLDEN[case]["sum"], rel=1e-9)  # NumPy still draws the same
    return made, reference
