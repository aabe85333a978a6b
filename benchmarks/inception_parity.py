"""Whether Inception's features are those of torch-fidelity, pytorch-fid and torchmetrics, at full size, on any weights.

Measures: the largest difference of all 2,048 features (and 1,008 logits) and of all pixels at 299 x 299, for pictures
that are kept, enlarged and reduced. The weights of 2015 are not needed: drawn ones show whether two programs compute
the same function, and are given to each in its own file layout (tests/golden/inception.py).
What would make the numbers lie: features that are all 0 or all alike, so their range and deviation stand beside.

    sh benchmarks/peers/fid.sh peers-fid
    python benchmarks/inception_parity.py --peers peers-fid

Last line of stdout: the table as one JSON object; also written to benchmarks/results/inception_parity.json. Exits with
1 unless features agree to 1e-4.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mezzotint.evaluation.inception import Inception, shapes
from mezzotint.evaluation.protocols import inception_protocol
from mezzotint.evaluation.resize import prepared, resize

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "inception_parity.json"
PROTOCOLS = {
    "torch-fidelity": "tf1",
    "pytorch-fid": "pytorch-fid",
    "torchmetrics": "torchmetrics",
    "clean-fid": "clean",
}
TOLERANCE = 1e-4


def main() -> None:
    """Compare everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder that benchmarks/peers/fid.sh made")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from golden.inception import SIZES, drawn, picture

    torch.set_num_threads(1)
    script = ROOT / "tests" / "golden" / "inception.py"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peers.pt"
        command = [asked.peers / "bin" / "python", script, "--tensors", file]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        theirs: dict[str, dict[str, dict[str, torch.Tensor]]] = torch.load(file)
    network = Inception({name: drawn(name, shape) for name, shape in shapes().items()})
    rows: list[dict[str, Any]] = []
    for program, name in PROTOCOLS.items():
        rule = inception_protocol(name)
        for height, width in SIZES:
            pixels, key = picture(height, width)[None], f"{height}x{width}"
            image = resize(pixels, rule.size, rule.size, rule.kernel)[0]
            row: dict[str, Any] = {"program": program, "protocol": rule.label, "size": key}
            row["pixels"] = float((image - theirs["resized"][program][key]).abs().max())
            if program in theirs["features"]:
                with torch.inference_mode():
                    found = network(prepared(rule, pixels))
                expected = theirs["features"][program][key]
                row["features"] = float((found.features[0] - expected).abs().max())
                row["largest"], row["deviation"] = float(expected.abs().max()), float(expected.std())
                if (logits := theirs["features"][program].get(f"{key} logits")) is not None:
                    row["logits"] = float((found.logits[0] - logits).abs().max())
            rows.append(row)
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()))
    worst = max(row.get("features", 0.0) for row in rows)
    versions = {"peers": json.loads(said)["source"], "torch": torch.__version__, "platform": platform.platform()}
    table = {"worst_feature": worst, "tolerance": TOLERANCE, "rows": rows, **versions}
    RESULTS.write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table))
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
