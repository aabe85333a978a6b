#!/bin/sh
# An environment of its own for the programs that measure FID elsewhere: sh benchmarks/peers/fid.sh FOLDER
#
# They cannot live beside this package's: their arithmetic breaks with SciPy 1.18, and all import torchvision, whose
# usual file belongs to another build of torch (tests/golden/inception.py declares the operators that it misses).
# Versions are those that benchmarks/results/inception_parity.json and tests/golden/inception.json were made with.
set -eu
python3 -m venv "$1"
"$1/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 'scipy<1.18' pillow==13.0.0
"$1/bin/pip" install --quiet --no-deps torchvision==0.28.0 torch-fidelity==0.4.0 pytorch-fid==0.3.0 \
    clean-fid==0.1.35 torchmetrics==1.9.0 lightning-utilities==0.15.3 tqdm requests packaging urllib3 idna certifi \
    charset-normalizer
"$1/bin/python" tests/golden/inception.py --help > /dev/null
