#!/bin/sh
# An environment of its own with stable-diffusion.cpp, built here for this processor: sh benchmarks/peers/sdcpp.sh FOLDER
#
# Needs a C++ compiler. Its own matrix products (llamafile's) are off by default and the fastest that it has here.
set -eu
python3 -m venv "$1"
CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON" \
    "$1/bin/pip" install --quiet --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python==0.4.7
"$1/bin/pip" install --quiet numpy==2.4.6
"$1/bin/python" -c 'import stable_diffusion_cpp as sd; print("stable-diffusion.cpp", sd.__version__)'
