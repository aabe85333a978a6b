#!/bin/sh
# An environment of its own for OpenVINO as a contender of benchmarks/cpu_speed.py: sh benchmarks/peers/openvino.sh FOLDER
#
# It converts diffusers' networks itself, so torch and diffusers of the versions compared with are beside it.
set -eu
python3 -m venv "$1"
"$1/bin/pip" install --quiet torch==2.13.0 openvino==2026.4.1 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
"$1/bin/python" -c 'import openvino; print("OpenVINO", openvino.__version__)'
