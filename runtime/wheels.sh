#!/bin/bash
# Builds wheels that install without a compiler:
#
#   runtime/wheels.sh FOLDER [x86_64|aarch64 ...]
#
# for this machine and, on x86-64, for 64-bit ARM too (Debian's g++-aarch64-linux-gnu). PYTHON names the Python to use.
# The tag holds because the library asks for nothing newer than glibc 2.17; tests/test_wheels.py checks it.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
host=$(uname -m)
folder=${1:?name the folder for the wheels}
shift
if [ $# = 0 ]; then
  set -- "$host"
  [ "$host" != x86_64 ] || set -- x86_64 aarch64
fi

for machine in "$@"; do
  settings=(--config-settings "wheel.tags=py3-none-manylinux_2_17_$machine")
  if [ "$machine" != "$host" ]; then
    toolchain=$source/cmake/$machine.cmake
    [ -e "$toolchain" ] || { echo "wheels.sh: there is no way from $host to $machine" >&2; exit 1; }
    settings+=(--config-settings "cmake.define.CMAKE_TOOLCHAIN_FILE=$toolchain")
  fi
  "${PYTHON:-python3}" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" \
    "${settings[@]}" "$source"
done
