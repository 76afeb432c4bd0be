#!/bin/bash
# Counts the instructions of one inference on an emulated Cortex-A72, one thread:
#
#   tests/count_instructions.sh MODEL.tflite...
#
# The board runs each model 2 and 12 times; a tenth of the difference is one inference. It needs what tests/arm64.sh needs,
# a C compiler and g++-aarch64-linux-gnu. BINARYVIT_BUILD says where to build (default: build/arm64).
set -euo pipefail
[ $# -gt 0 ] && [ "$1" != --help ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit $((1 - ($# > 0))); }
tests=$(cd "$(dirname "$0")" && pwd)
build=${BINARYVIT_BUILD:-$PWD/build/arm64}
cmake -S "$tests/.." -B "$build" -DCMAKE_TOOLCHAIN_FILE="$tests/../cmake/aarch64.cmake" >/dev/null
cmake --build "$build" -j 2 >/dev/null
cc -O2 -shared -fPIC -o "$build/count.so" "$tests/count_instructions.c"

run='
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate
interpreter = Interpreter(sys.argv[1], num_threads=1, experimental_delegates=[load_delegate(sys.argv[2])])
interpreter.allocate_tensors()
entry = interpreter.get_input_details()[0]
interpreter.set_tensor(entry["index"], np.random.default_rng(0).normal(size=entry["shape"]).astype(entry["dtype"]))
for _ in range(int(sys.argv[3])):
    interpreter.invoke()
'
count() { # MODEL RUNS
  PYTHONHASHSEED=0 QEMU_OPTS="-plugin $build/count.so" "$tests/arm64.sh" -c "$run" "$1" \
    "$build/libbinaryvit_runtime.so" "$2" 2>&1 | sed -n 's/^instructions //p'
}
for model in "$@"; do
  first=$(count "$model" 2)
  second=$(count "$model" 12)
  tenths=$(((second - first) / 1000000))
  echo "$(basename "$model"): $((tenths / 10)).$((tenths % 10)) million instructions"
done
