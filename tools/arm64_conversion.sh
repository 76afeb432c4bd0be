#!/bin/bash
# Converts models here and on an emulated 64-bit ARM board, with TensorFlow's converter, and compares the files bit for bit, and
# those of tests/golden with what the Larq Compute Engine's converter wrote:
#
#   tools/arm64_conversion.sh FOLDER
#
# FOLDER keeps TensorFlow's wheels for the board, 1.6 GB, and the files. It takes ten minutes, what runtime/tests/arm64.sh takes,
# and a Python with TensorFlow.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:?name a folder for the packages of the board and the files}"
folder=$(cd "$1" && pwd)
board=$repository/runtime/tests/arm64.sh
export BINARYVIT_CPU=cortex-a76 KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=2

if [ ! -d "$folder/packages" ]; then
  version=$("$board" -c 'import sys; print(*sys.version_info[:2], sep=".")')
  platforms=(--platform=manylinux_2_28_aarch64 --platform=manylinux_2_27_aarch64 --platform=manylinux_2_17_aarch64
    --platform=manylinux2014_aarch64)
  python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages.part" --only-binary=:all: \
    --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 "${platforms[@]}" \
    $(python3 -c 'from importlib.metadata import version; print(*(f"{x}=={version(x)}" for x in ("tensorflow", "keras")))') \
    hypothesis
  mv "$folder/packages.part" "$folder/packages"
fi

rm -rf "$folder/here" "$folder/board"
(cd "$repository" && PYTHONPATH=. python3 tests/golden_conversion.py "$folder/here")
(cd "$repository" && PYTHONPATH=.:$folder/packages "$board" tests/golden_conversion.py "$folder/board")
diff -r "$folder/here" "$folder/board"
echo "$(ls "$folder/board" | wc -l) files, the same bits"
