#!/bin/sh
# The tables of docs/why/cpu-speed.md, a few minutes each on two quiet cores, as benchmarks/results/cpu_speed-TABLE.json:
#
#     sh benchmarks/cpu_speed.sh TABLE WEIGHTS OPENVINO SDCPP
#
# WEIGHTS: a folder that keeps random weights (10 GB) and what float32 makes of them; OPENVINO, SDCPP: the environments
# of benchmarks/peers/. The first run of a model writes its weights, which takes minutes more. PYTHON: of this package.
set -eu
table=$1 weights=$2 openvino=$3 sdcpp=$4
python=${PYTHON:-python}
sixteen="ours,diffusers bfloat16,diffusers compiled,OpenVINO"

run() {
    "$python" benchmarks/cpu_speed.py --weights "$weights" --openvino "$openvino" --sdcpp "$sdcpp" --name "$table" "$@"
}

case $table in
sd15-step) run --parts unet,decode --rounds 3 --contenders "$sixteen,diffusers float32" ;;                # 5 minutes
sd15-picture) run --parts picture --pictures 1 --contenders "$sixteen" ;;                                 # 6
sd15-slow) run --parts picture --pictures 1 --contenders "ours,diffusers float32,stable-diffusion.cpp" ;; # 11
sd15-w8a8) run --parts picture --pictures 1 --contenders "ours,ours w8a8" ;;                              # 2
sd15-cold) run --parts cold --rounds 3 --contenders "ours,diffusers bfloat16,OpenVINO" ;;                 # 2
sd15-avx2) run --isa avx2 --parts unet,decode,picture --steps 5 --pictures 1 --rounds 3 \
    --contenders "ours float32,diffusers float32" ;;                                                      # 5
sd15-256) run --size 256 --parts unet,decode,picture --contenders "$sixteen,stable-diffusion.cpp" ;;      # 6
sd15-1024) run --size 1024 --parts unet,decode --rounds 3 --contenders "ours,diffusers bfloat16" ;;       # 5
sd15-one-thread) run --threads 1 --rounds 3 --contenders "ours,diffusers bfloat16,OpenVINO" ;;            # 3
sd15-batch) run --batch 4 --parts unet --rounds 3 --contenders "ours,diffusers bfloat16" ;;               # 2
sd2-v) run --preset sd2-v --rounds 3 --contenders "ours,diffusers bfloat16" ;;                            # 4
sdxl) run --preset sdxl --rounds 2 --contenders "ours,diffusers bfloat16" ;;                              # 6
*)
    echo "no table $table; the names are in this file" >&2
    exit 2
    ;;
esac
