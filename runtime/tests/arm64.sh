#!/bin/bash
# Runs Python on an emulated 64-bit ARM board, with the stock aarch64 wheels of ai-edge-litert and Pillow:
#
#   tests/arm64.sh [python arguments...]
#
# The board's files are unpacked once into a cache, from this machine's own Debian or Ubuntu package sources and pip's
# index; nothing is installed, and no rights are needed. It needs qemu-aarch64, apt-get and pip.
#   BINARYVIT_ARM64   the cache (default: ~/.cache/binaryvit-arm64)
#   BINARYVIT_LITERT  the version of ai-edge-litert (default: 2.3.0)
#   BINARYVIT_CPU     cortex-a72, the Raspberry Pi 4's (default), or cortex-a76, the Raspberry Pi 5's
#   QEMU_OPTS         further options of qemu
set -euo pipefail
cache=${BINARYVIT_ARM64:-$HOME/.cache/binaryvit-arm64}
litert=${BINARYVIT_LITERT:-2.3.0}
cpu=${BINARYVIT_CPU:-cortex-a72}
root=$cache/root
packages=$cache/packages-$litert

for tool in qemu-aarch64 apt-get dpkg; do
  command -v "$tool" >/dev/null || { echo "arm64.sh: $tool isn't installed" >&2; exit 77; }
done

if [ ! -e "$cache/python" ]; then
  # apt with a state of its own, for another architecture than this machine's.
  apt=$cache/apt
  mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/debs" "$root"
  : >"$apt/status"
  options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
    -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
    -o Acquire::Languages=none)
  apt-get "${options[@]}" -qq update
  python=$(apt-cache "${options[@]}" depends python3-minimal | grep -o 'python3\.[0-9]*' | head -n 1)
  wanted=(libc6 libgcc-s1 libstdc++6 "$python-minimal" "lib$python-minimal" "lib$python-stdlib" libexpat1 zlib1g libffi8
    libssl3 libbz2-1.0 liblzma5)
  (cd "$apt/debs" && apt-get "${options[@]}" -qq download "${wanted[@]}" && for deb in *.deb; do dpkg -x "$deb" "$root"; done)
  rm -rf "$apt"
  echo "$python" >"$cache/python"
fi
python=$(cat "$cache/python")

if [ ! -d "$packages" ]; then
  version=${python#python}
  rm -rf "$packages.part"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$packages.part" \
    --python-version "$version" --implementation cp --abi "cp${version/./}" --only-binary=:all: \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 "ai-edge-litert==$litert" pillow
  mv "$packages.part" "$packages"
fi

# LiteRT reads what the processor can do from /proc/cpuinfo, which would be this machine's.
features="fp asimd evtstrm crc32 cpuid" part=0xd08
if [ "$cpu" = cortex-a76 ]; then
  features="$features aes pmull sha1 sha2 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp" part=0xd0b
fi
mkdir -p "$root/proc"
for ((core = 0; core < $(nproc); core++)); do
  printf 'processor\t: %d\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' "$core" "$features"
  printf 'CPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 3\n\n' "$part"
done >"$root/proc/cpuinfo.$$"
mv "$root/proc/cpuinfo.$$" "$root/proc/cpuinfo"

export QEMU_CPU=$cpu PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
# shellcheck disable=SC2086 # several options
exec qemu-aarch64 -L "$root" ${QEMU_OPTS:-} "$root/usr/bin/$python" "$@"
