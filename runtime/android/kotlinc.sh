#!/bin/bash
# Runs Kotlin's compiler, npm's kotlin-compiler, which is installed once into a cache; it needs npm and Java.
#
#   kotlinc.sh [kotlinc's arguments...]
#
#   BINARYVIT_KOTLIN   the cache (default: ~/.cache/binaryvit-kotlin-2.4.20)
set -euo pipefail
version=2.4.20
cache=${BINARYVIT_KOTLIN:-$HOME/.cache/binaryvit-kotlin-$version}
for tool in npm java; do
  command -v "$tool" >/dev/null || { echo "kotlinc.sh: $tool isn't installed" >&2; exit 77; }
done
if [ ! -d "$cache" ]; then
  mkdir -p "$(dirname "$cache")"
  part=$(mktemp -d "$cache.XXXXXX")
  timeout 120 npm install --silent --no-fund --no-audit --prefix "$part" "kotlin-compiler@$version" ||
    { rm -rf "$part"; echo "kotlinc.sh: npm can't install kotlin-compiler $version" >&2; exit 77; }
  mv -T "$part" "$cache" 2>/dev/null || rm -rf "$part"  # another process may have been faster
fi
# It compiles little, which takes half as long with these settings of Java's.
export JAVA_OPTS=${JAVA_OPTS:--Xmx512M -XX:+UseSerialGC -XX:TieredStopAtLevel=1}
exec bash "$cache/node_modules/kotlin-compiler/bin/kotlinc" "$@"
