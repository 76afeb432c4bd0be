"""Builds binaryvit-runtime.aar, also in the layout of a Maven repository: `make aar`.

python runtime/android/aar.py FOLDER

The archive has the libraries for 64-bit ARM and x86-64, the C header as a Prefab package, the Kotlin classes, and rules
for ProGuard. The libraries' compiler is that of the NDK in ANDROID_NDK_HOME, or else Debian's clang 19; kotlinc.sh says
what the classes need.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ABIS = ("arm64-v8a", "x86_64")
API_LEVEL = 28
LIBRARIES = ("runtime/libbinaryvit_runtime.so", "libbinaryvit_jni.so", "libbinaryvit_litert2.so")
LLVM = Path("/usr/lib/llvm-19/bin")
KOTLIN = "2.2"  # what the Android Gradle plugin 9 comes with, and so the apps that use the classes
VERSION = re.search(r'__version__ = "(.*)"', (HERE.parent / "python/binaryvit_runtime/__init__.py").read_text())[1]
POM = f"""<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>org.binaryvit</groupId>
  <artifactId>binaryvit-runtime</artifactId>
  <version>{VERSION}</version>
  <packaging>aar</packaging>
  <licenses>
    <license>
      <name>Apache-2.0</name>
      <url>https://www.apache.org/licenses/LICENSE-2.0.txt</url>
    </license>
  </licenses>
  <dependencies>
    <dependency>
      <groupId>org.jetbrains.kotlin</groupId>
      <artifactId>kotlin-stdlib</artifactId>
      <version>{KOTLIN}.0</version>
      <scope>compile</scope>
    </dependency>
  </dependencies>
</project>
"""


class BuildError(Exception):
    """A tool is missing or has failed."""


def run(*command: str | Path) -> None:
    """Runs a tool.

    Raises:
        BuildError: It isn't there, or has failed; the message has what it printed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} isn't installed.") from error
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def write_sysroot(folder: Path, abi: str) -> None:
    """Writes what clang.cmake compiles against: libraries that have bionic's symbols and no code, and a few headers."""
    (folder / "lib").mkdir(parents=True)
    (folder / "include" / "android").mkdir(parents=True)
    (folder / "include" / "xlocale.h").write_text("#include <locale.h>\n")
    (folder / "include" / "android" / "api-level.h").touch()
    javac = shutil.which("javac")
    if javac is None:
        raise BuildError("javac isn't installed: apt-get install openjdk-17-jdk-headless")
    jdk = Path(javac).resolve().parents[1]
    for header in ("jni.h", "linux/jni_md.h"):
        shutil.copy(jdk / "include" / header, folder / "include")
    rows = [line.split() for line in (HERE / "bionic.txt").read_text().splitlines() if not line.startswith("#")]
    target = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}[abi] + f"-linux-android{API_LEVEL}"
    for library in sorted({library for library, _ in rows}):
        names = [name for of, name in rows if of == library]
        source, versions = folder / "lib" / f"{library}.s", folder / "lib" / f"{library}.map"
        source.write_text("".join(f".globl {name}\n.type {name}, %function\n{name}:\n" for name in names))
        versions.write_text("LIBC { global: *; };\n")
        flags = [f"--target={target}", "-nostdlib", "-shared", f"--ld-path={LLVM / 'ld.lld'}"]
        flags += [f"-Wl,-soname,{library}.so", f"-Wl,--version-script={versions}"]
        run(LLVM / "clang", *flags, source, "-o", folder / "lib" / f"{library}.so")


def build_libraries(folder: Path, abi: str) -> None:
    """Builds the libraries for one kind of processor in a folder."""
    settings = [f"-DANDROID_ABI={abi}"]
    if ndk := os.environ.get("ANDROID_NDK_HOME"):
        toolchain = Path(ndk, "build", "cmake", "android.toolchain.cmake")
        settings += [f"-DANDROID_PLATFORM={API_LEVEL}", "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON"]
    else:
        toolchain = HERE / "clang.cmake"
        write_sysroot(folder / "sysroot", abi)
        settings.append(f"-DSYSROOT={folder / 'sysroot'}")
    run("cmake", "-S", HERE, "-B", folder, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", *settings)
    run("cmake", "--build", folder, "-j", str(os.cpu_count()))


def build_classes(jar: Path) -> None:
    """Compiles the Kotlin classes."""
    versions = ["-jvm-target", "17", "-language-version", KOTLIN, "-api-version", KOTLIN]
    run(HERE / "kotlinc.sh", "-Werror", "-no-reflect", *versions, "-d", jar, HERE / "api", HERE / "kotlin")


def content(folder: Path) -> dict[str, bytes]:
    """Returns the archive's files by their names, of what has been built in `folder`."""
    prefab = {"schema_version": 2, "name": "binaryvit-runtime", "version": VERSION, "dependencies": []}
    module = "prefab/modules/binaryvit_runtime"
    files = {
        "AndroidManifest.xml": (HERE / "AndroidManifest.xml").read_bytes(),
        "R.txt": b"",
        "classes.jar": (folder / "classes.jar").read_bytes(),
        "proguard.txt": (HERE / "proguard.txt").read_bytes(),
        "LICENSE": (HERE.parent / "LICENSE").read_bytes(),
        "prefab/prefab.json": json.dumps(prefab).encode(),
        f"{module}/module.json": json.dumps({"export_libraries": [], "library_name": "libbinaryvit_runtime"}).encode(),
        f"{module}/include/binaryvit_runtime.h": (HERE.parent / "include" / "binaryvit_runtime.h").read_bytes(),
    }
    for abi in ABIS:
        libraries = {Path(path).name: (folder / abi / path).read_bytes() for path in LIBRARIES}
        files |= {f"jni/{abi}/{name}": library for name, library in libraries.items()}
        kind = {"abi": abi, "api": API_LEVEL, "ndk": 27, "stl": "none", "static": False}
        files[f"{module}/libs/android.{abi}/abi.json"] = json.dumps(kind).encode()
        files[f"{module}/libs/android.{abi}/libbinaryvit_runtime.so"] = libraries["libbinaryvit_runtime.so"]
    return files


def build(folder: Path) -> Path:
    """Builds the archive and writes it to a folder, also as a Maven repository.

    Args:
        folder: Where `binaryvit-runtime.aar` and `maven/` are written; it is made if it isn't there.

    Returns:
        The archive's path.

    Raises:
        BuildError: A tool is missing or has failed.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for abi in ABIS:
            build_libraries(work / abi, abi)
        build_classes(work / "classes.jar")
        files = content(work)
    release = folder / "maven" / "org" / "binaryvit" / "binaryvit-runtime" / VERSION
    release.mkdir(parents=True, exist_ok=True)
    archive = folder / "binaryvit-runtime.aar"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        for path, data in sorted(files.items()):
            package.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)  # of no date: the same bits each time
    for suffix, data in (("aar", archive.read_bytes()), ("pom", POM.encode())):
        file = release / f"binaryvit-runtime-{VERSION}.{suffix}"
        file.write_bytes(data)
        for algorithm in ("sha1", "sha256"):
            file.with_name(f"{file.name}.{algorithm}").write_text(hashlib.new(algorithm, data).hexdigest())
    return archive


def main() -> None:
    """Builds the archive where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where binaryvit-runtime.aar and maven/ are written")
    try:
        print(build(parser.parse_args().folder))
    except BuildError as error:
        sys.exit(f"aar.py: {error}")


if __name__ == "__main__":
    main()
