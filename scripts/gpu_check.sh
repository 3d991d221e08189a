#!/usr/bin/env bash
# Proves the CUDA build on a machine that has a GPU and no network, within 9 minutes on 16 cores:
#
#   1. builds libllama for this GPU from carried source
#   2. runs doctor: the self-test of scoring and moving on every device
#   3. measures the shapes of Qwen3-8B and Qwen3-32B, with the GPU's memory held to that of a 24 GB card
#
#   scripts/gpu_check.sh BUNDLE OUT      BUNDLE: what scripts/gpu_bundle.py made; OUT: gets gpu-check.json and pictures
#
# It needs nvcc, CMake, Ninja and Python 3.10 with numpy, PyYAML and MarkupSafe, and matplotlib for the pictures. GPU_CHECK=cpu goes the same way
# with a CPU build and a shape of one layer: that is how it is tried where there is no GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    printf 'gpu_check: %s\n' "$*" >&2
    exit 1
}

[ $# = 2 ] || fail 'usage: scripts/gpu_check.sh BUNDLE OUT'
[ -f "$1/source.tar.gz" ] || fail "$1 holds no source.tar.gz; make it with: python scripts/gpu_bundle.py $1"
bundle=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
python=${PYTHON:-python3}
mode=${GPU_CHECK:-cuda}
budget_s=${GPU_CHECK_SECONDS:-530}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

left() { # seconds that are left for a command; at least the number given
    local s=$((budget_s - SECONDS))
    echo $((s > $1 ? s : $1))
}
step() { printf '\n=== %s (after %d s)\n' "$*" "$SECONDS"; }

# files of 20 GB are written and read once: memory is the faster place, if there is enough of it
work=$(mktemp -d)
if [ -d /dev/shm ] && [ "$(df -k --output=avail /dev/shm | tail -1)" -gt $((40 << 20)) ]; then
    rm -rf "$work"
    work=$(mktemp -d -p /dev/shm)
fi
trap 'rm -rf "$work"' EXIT

step 'packages'
"$python" -c 'import markupsafe, numpy, yaml' || fail "$python lacks a package; name another Python in \$PYTHON"
"$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$bundle"/wheels/*.whl
mkdir "$work/ours"
cp -r "$here/triattn_local" "$work/ours/"

step 'libllama'
export TRIATTN_NATIVE_CACHE=$work/native
mkdir "$work/native"
tar xzf "$bundle/source.tar.gz" -C "$work/native"
if [ "$mode" = cuda ]; then
    # the cache types that are measured; each further pair is one more file of kernels
    export CMAKE_ARGS="${CMAKE_ARGS:-} -DGGML_CUDA_FA_QUANTS=f16-f16;q8_0-q8_0 -DGGML_CUDA_NCCL=off -DGGML_CUDA_COMPRESSION_MODE=none"
    options=$("$python" "$here/scripts/cuda_options.py")
    echo "$options"
    eval "$options"
fi
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
built=0
timeout "$(left 60)" "$python" "$here/native/build_backend.py" patched --out "$work/lib" 2>"$out/build.log" || built=$?
tail -n 3 "$out/build.log"
[ "$built" = 0 ] || fail "the build ended with $built; its messages are in $out/build.log"
build_s=$SECONDS
export LLAMA_CPP_LIB_PATH=$work/lib
tree=$(echo "$work"/native/*/patched/src)
export PYTHONPATH=$work/ours:$work/site:$tree
export XDG_CACHE_HOME=$work/cache TRIATTN_CONFIG=$work/config.toml
touch "$TRIATTN_CONFIG"
triattn=("$python" -c 'from triattn_local.cli import main; main()')

step 'doctor'
checked=0
timeout "$(left 30)" "${triattn[@]}" doctor --json >"$out/doctor.json" || checked=$?
cat "$out/doctor.json"

bench() { # NAME ARGS...: one run, its result in OUT/NAME.json
    local name=$1
    shift
    step "bench $name: $*"
    timeout "$(left 20)" "${triattn[@]}" bench --out "$work/$name" --blocks 3 "$@" || echo "bench $name ended with $?"
    if [ -f "$work/$name/bench.json" ]; then
        cp "$work/$name/bench.json" "$work/$name.json"
    fi
    if [ -f "$work/$name/bench.png" ]; then
        cp "$work/$name/bench.png" "$out/$name.png"
    fi
}

if [ "$mode" = cuda ]; then
    # the setting of the paper: many sequences, budget 3,072; the batch of a prompt is small, for its cells are kept too
    bench qwen3-8b-batched --geometry qwen3-8b --depths 32k --budget 3072 --batch 128 --parallel 24 --vram 24GiB
    bench qwen3-32b --geometry qwen3-32b --depths 32k,128k --vram 24GiB
    bench qwen3-8b --geometry qwen3-8b --depths 8k,32k,128k --vram 24GiB
else
    bench qwen3-8b --geometry qwen3-8b --layers 1 --depths 512 --budget 160 --window 32 --batch 64
fi

step 'one file'
"$python" - "$out" "$work" "$build_s" "$mode" <<'PYTHON'
import json, os, pathlib, platform, subprocess, sys

out, work, build_s, mode = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
benches = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
nvcc = ""
if mode == "cuda":
    nvcc = subprocess.run([os.environ["CUDACXX"], "--version"], capture_output=True, text=True).stdout
found = {
    "build": {
        "mode": mode,
        "seconds": build_s,
        "cores": os.cpu_count(),
        "cmake_args": os.environ.get("CMAKE_ARGS", ""),
        "nvcc": next((line for line in nvcc.splitlines() if "release" in line), ""),
        "platform": platform.platform(),
    },
    "doctor": json.loads((out / "doctor.json").read_text() or "null"),
    "benches": benches,
}
(out / "gpu-check.json").write_text(json.dumps(found, indent=1) + "\n")
PYTHON
rm "$out/doctor.json"
step 'done'
[ "$checked" = 0 ] || fail "doctor ended with $checked: see gpu-check.json"
ls "$work"/*.json >/dev/null 2>&1 || fail 'no bench came to its end'
