#!/bin/bash
# Tests the library with sanitizers, and fuzzes it with single nodes ("operator") and with graphs:
#
#   tests/sanitize.sh address [pytest arguments...]   all tests, with the address and undefined-behavior sanitizers of GCC
#   tests/sanitize.sh thread                          the corpora of the fuzz targets, with the thread sanitizer
#   tests/sanitize.sh arm64                           the corpora and test_arm64.py's models on emulated ARM boards, with the
#                                                     address sanitizer and that of alignment, bounds, shifts and
#                                                     overflows; with clang and g++-aarch64-linux-gnu
#   tests/sanitize.sh fuzz [seconds [target...]]      new inputs for the fuzz targets (default: 600 seconds each), with clang
#
# Fuzzing starts from the seeds and tests/fuzz/corpus_*. What crashes is left in the build folder; the corpora take it, and
# what covers more, with
#   tests/sanitize.sh merge [target...]               the corpora again, without what covers nothing of its own
#
#   BINARYVIT_BUILD  where to build (default: build/sanitize)
#   PYTHON           a Python with what the tests need (default: python3)
#   CLANG            the compiler for fuzzing and ARM (default: clang++)
set -euo pipefail
case ${1:-} in
  address | thread | arm64 | fuzz | merge) ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit $([ "${1:-}" = --help ] && echo 0 || echo 2) ;;
esac
mode=$1
shift
runtime=$(cd "$(dirname "$0")/.." && pwd)
fuzz=$runtime/tests/fuzz
build=${BINARYVIT_BUILD:-$PWD/build/sanitize}/$([ "$mode" = merge ] && echo fuzz || echo "$mode")
python=${PYTHON:-python3}
clang=${CLANG:-clang++}
export UBSAN_OPTIONS=print_stacktrace=1
mkdir -p "$build"

compile() { # OPTION...
  cmake -S "$runtime" -B "$build" "$@" >/dev/null
  cmake --build "$build" --parallel
}

case $mode in
  address)
    compile -DBINARYVIT_SANITIZE=address,undefined
    # The package as pip would install it.
    package=$build/package/binaryvit_runtime
    rm -rf "$package"
    mkdir -p "$package"
    cp -r "$runtime"/python/binaryvit_runtime/. "$package"
    cp -r "$runtime/include" "$build/libbinaryvit_runtime.so" "$package"
    # Python isn't built with the sanitizer, which therefore is loaded first, and Python's own leaks aren't of interest. A
    # test takes memory that there isn't. What builds libraries of its own, or needs an installed package, is left out.
    cd "$runtime"
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)" \
      ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH="$build/package" "$python" -m pytest \
      --ignore tests/test_android.py --ignore tests/test_arm64.py --ignore tests/test_kotlin.py --ignore tests/test_wheels.py \
      --ignore tests/test_thread_pool.py --ignore tests/test_raspberry_pi.py \
      --deselect tests/test_command_lines.py::test_modules_and_entry_points_run "$@"
    ;;
  thread)
    compile -DBINARYVIT_SANITIZE=thread
    "$python" "$fuzz/seeds.py" "$build/seeds"
    for target in operator graph; do
      g++ -std=c++17 -O1 -g -fsanitize=thread -I"$runtime/include" -I"$runtime/src" \
        "$fuzz/replay.cc" "$fuzz/host.cc" "$fuzz/fuzz_$target.cc" "$build/libbinaryvit_runtime.so" \
        -Wl,-rpath,"$build" -o "$build/replay_$target"
      TSAN_OPTIONS=halt_on_error=1 "$build/replay_$target" "$build/seeds/$target"/* "$fuzz/corpus_$target"/* | tail -n 3
    done
    ;;
  arm64)
    # Clang compiles, with checks that are calls, and GCC's libraries run: clang's own take 17 GB in the emulator, and GCC
    # isn't done with the kernels after minutes. Leaks can't be looked for in the emulator.
    checks=address,alignment,bounds,shift,signed-integer-overflow
    target=aarch64-linux-gnu
    compile -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DBINARYVIT_SANITIZE=$checks \
      -DCMAKE_C_COMPILER="${clang/++/}" -DCMAKE_CXX_COMPILER="$clang" \
      -DCMAKE_C_COMPILER_TARGET=$target -DCMAKE_CXX_COMPILER_TARGET=$target \
      -DCMAKE_CXX_FLAGS="-mllvm -asan-instrumentation-with-call-threshold=0" \
      -DCMAKE_SHARED_LINKER_FLAGS=-fno-sanitize-link-runtime -DCMAKE_CXX_STANDARD_LIBRARIES="-lasan -lubsan"
    "$python" "$fuzz/seeds.py" "$build/seeds"
    mkdir -p "$build/models"
    (cd "$runtime/tests" && "$python" -c 'import pathlib, sys, test_arm64 as t; t.record_models(pathlib.Path(sys.argv[1]))' \
      "$build/models")
    export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
    for kind in operator graph; do
      $target-g++ -std=c++17 -O1 -g -fsanitize=$checks -I"$runtime/include" -I"$runtime/src" \
        "$fuzz/replay.cc" "$fuzz/host.cc" "$fuzz/fuzz_$kind.cc" "$build/libbinaryvit_runtime.so" -o "$build/replay_$kind"
    done
    for cpu in cortex-a72 cortex-a76; do
      for kind in operator graph; do
        qemu-aarch64 -cpu $cpu -L /usr/$target -E LD_LIBRARY_PATH="$build:/usr/$target/lib" "$build/replay_$kind" \
          "$build/seeds/$kind"/* "$fuzz/corpus_$kind"/* | tail -n 1
      done
      # The board has a C library of its own.
      BINARYVIT_CPU=$cpu QEMU_OPTS="-E LD_PRELOAD=/usr/$target/lib/libasan.so.8:/usr/$target/lib/libubsan.so.1" \
        "$runtime/tests/arm64.sh" "$runtime/tests/arm64_check.py" "$build/models" "$build/libbinaryvit_runtime.so"
    done
    ;;
  fuzz | merge)
    CC=${clang/++/} CXX=$clang compile -DBINARYVIT_FUZZ=ON -DBINARYVIT_SANITIZE=address,undefined
    "$python" "$fuzz/seeds.py" "$build/seeds"
    export ASAN_OPTIONS=allocator_may_return_null=1
    seconds=600
    if [ "$mode" = fuzz ] && [ $# -gt 0 ]; then
      seconds=$1
      shift
    fi
    [ $# -gt 0 ] || set -- operator graph
    for target in "$@"; do
      corpus=$fuzz/corpus_$target
      options=(-max_len=600 -timeout=20 -rss_limit_mb=3000 -artifact_prefix="$build/$target-")
      found=$build/found/$target merged=$build/merged/$target
      mkdir -p "$found"
      if [ "$mode" = fuzz ]; then
        "$build/fuzz_$target" "${options[@]}" -max_total_time="$seconds" "$found" "$build/seeds/$target" "$corpus"
      else
        # What covers a line; how often it runs it would keep thousands.
        rm -rf "$merged"
        mkdir -p "$merged"
        "$build/fuzz_$target" "${options[@]}" -use_counters=0 -set_cover_merge=1 "$merged" "$corpus" "$found"
        rm -f "$corpus"/*
        cp "$merged"/* "$corpus"
      fi
    done
    ;;
esac
