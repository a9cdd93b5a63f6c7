#!/usr/bin/env bash
# Proves on a machine with an NVIDIA GPU what this project says of GPUs. docs/tensorrt.md says how.
#
#   prove.sh parts             where there is a network: fetch the wheels, cut them into parts
#   prove.sh take              on the GPU machine: take in the parts in build/parts, install once all are there
#   prove.sh run [STEP...]     there: every step, or those named; go on where the last call ended
#   prove.sh rehearse [STEP...]  anywhere: every step up to its first CUDA call
#   prove.sh                   take, then run
#
# PYTHON (python3), PROVEN (/tmp/proven: what calls keep), OUT (build/proof: where proof.json goes),
# PROVE_SECONDS (540: the length of a call), PROVE_AT_ONCE (compilations at one time).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

here=benchmarks/gpu
python=${PYTHON:-python3}
export PROVEN=${PROVEN:-/tmp/proven} OUT=${OUT:-build/proof}
# The call is counted from here: taking in what was carried and installing it belong to it.
PROVE_BEGAN=$(date +%s)
export PROVE_BEGAN
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1 PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# What was carried comes before what the machine has. ONNX Runtime finds CUDA's libraries, which
# come with torch, only where the loader looks for them.
installed() {
    if [ -d "$PROVEN/site" ]; then
        export PYTHONPATH=$PROVEN/site:$PYTHONPATH
    fi
    libraries=$("$python" "$here/carry.py" libraries)
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

command=${1:-all}
shift || true
case $command in
parts | take)
    exec "$python" "$here/carry.py" "$command" "$@"
    ;;
run | rehearse)
    installed
    exec "$python" "$here/prove.py" "$command" "$@"
    ;;
all)
    "$python" "$here/carry.py" take
    installed
    exec "$python" "$here/prove.py" run
    ;;
*)
    echo "prove.sh: no command $command; there are parts, take, run and rehearse." >&2
    exit 2
    ;;
esac
