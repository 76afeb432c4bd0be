"""binaryvit-runtime.aar: its files, and that Android's linker and Gradle find in them what they look for."""

import hashlib
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
import zipfile

import pytest
from conftest import RUNTIME
from test_wheels import FUNCTIONS, MACHINES, readelf

ABIS = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
ANDROID = RUNTIME / "android"
APP = RUNTIME.parent / "examples" / "android" / "app"
BIONIC = [line.split() for line in (ANDROID / "bionic.txt").read_text().splitlines() if not line.startswith("#")]
JNI = "Java_org_binaryvit_runtime_"
# What each library offers, and the other libraries that it loads.
LIBRARIES = {
    "libbinaryvit_runtime.so": (FUNCTIONS, {"libc.so", "libm.so"}),
    "libbinaryvit_jni.so": (
        {f"{JNI}BinaryVitDelegate_{name}" for name in ("create", "destroy")},
        {"libc.so", "libbinaryvit_runtime.so"},
    ),
    "libbinaryvit_litert2.so": (
        {f"{JNI}LiteRt2Model_{name}" for name in ("create", "shape", "run", "destroy")},
        {"libc.so", "libbinaryvit_runtime.so", "libLiteRt.so"},
    ),
}


def test_the_archive(aar):
    names = zipfile.ZipFile(aar / "binaryvit-runtime.aar").namelist()
    module = "prefab/modules/binaryvit_runtime"
    assert set(names) == {
        *("AndroidManifest.xml", "LICENSE", "R.txt", "classes.jar", "proguard.txt"),
        *(f"jni/{abi}/{library}" for abi in ABIS for library in LIBRARIES),
        *("prefab/prefab.json", f"{module}/module.json", f"{module}/include/binaryvit_runtime.h"),
        *(f"{module}/libs/android.{abi}/{name}" for abi in ABIS for name in ("abi.json", "libbinaryvit_runtime.so")),
    }
    assert len(names) == len(set(names))
    manifest = ElementTree.parse(aar / "content" / "AndroidManifest.xml").getroot()
    assert manifest.get("package") == "org.binaryvit.runtime"
    minimum = manifest.find("uses-sdk").get("{http://schemas.android.com/apk/res/android}minSdkVersion")
    package = json.loads((aar / "content" / "prefab" / "prefab.json").read_text())
    assert package == {"schema_version": 2, "name": "binaryvit-runtime", "version": "0.1.0", "dependencies": []}
    for abi in ABIS:
        folder = aar / "content" / module / "libs" / f"android.{abi}"
        kind = json.loads((folder / "abi.json").read_text())
        assert (kind["abi"], str(kind["api"]), kind["stl"]) == (abi, minimum, "none")
        library = (folder / "libbinaryvit_runtime.so").read_bytes()
        assert library == (aar / "content" / "jni" / abi / "libbinaryvit_runtime.so").read_bytes()


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_libraries(abi, name, aar):
    library = aar / "content" / "jni" / abi / name
    functions, others = LIBRARIES[name]
    assert MACHINES[ABIS[abi]] in readelf("-h", library)
    symbols = [line.split() for line in readelf("--dyn-syms", library).splitlines() if re.match(r"\s*\d+:", line)]
    assert {symbol[7] for symbol in symbols if symbol[6] != "UND" and symbol[4] != "LOCAL"} == functions
    imported = {symbol[7] for symbol in symbols if symbol[6] == "UND" and len(symbol) > 7}
    bionic = {f"{function}@LIBC" for _, function in BIONIC}
    rest = {symbol for symbol in imported - bionic if not symbol.startswith("LiteRt")}
    assert rest <= FUNCTIONS and (name != "libbinaryvit_runtime.so" or not rest)
    dynamic = readelf("-d", library)
    assert f"Library soname: [{name}]" in dynamic
    assert set(re.findall(r"Shared library: \[(.*)\]", dynamic)) == others
    loads = [line.split() for line in readelf("-l", library).splitlines() if line.strip().startswith("LOAD")]
    assert loads and all(int(load[-1], 16) % 0x4000 == 0 for load in loads)  # phones with pages of 16 KB


def test_every_function_of_the_libraries_is_declared_in_kotlin(aar):
    offered = {function for functions, _ in LIBRARIES.values() for function in functions if function.startswith(JNI)}
    declared = set()
    for name in ("BinaryVitDelegate", "LiteRt2Model"):
        command = ["javap", "-p", "-cp", aar / "content" / "classes.jar", f"org.binaryvit.runtime.{name}"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        declared |= {f"{JNI}{name}_{function}" for function in re.findall(r"static final native \S+ (\w+)\(", printed)}
    assert declared == offered
    rules = (aar / "content" / "proguard.txt").read_text()
    assert "-keepclasseswithmembers,includedescriptorclasses class org.binaryvit.runtime.** {" in rules


def test_the_maven_repository(aar):
    folder = aar / "maven" / "org" / "binaryvit" / "binaryvit-runtime" / "0.1.0"
    archive, pom = (folder / f"binaryvit-runtime-0.1.0.{suffix}" for suffix in ("aar", "pom"))
    assert archive.read_bytes() == (aar / "binaryvit-runtime.aar").read_bytes()
    for file in (archive, pom):
        for algorithm in ("sha1", "sha256"):
            recorded = file.with_name(f"{file.name}.{algorithm}").read_text()
            assert recorded == hashlib.new(algorithm, file.read_bytes()).hexdigest()
    space = {"": "http://maven.apache.org/POM/4.0.0"}
    project = ElementTree.parse(pom).getroot()
    found = [project.find(name, space).text for name in ("groupId", "artifactId", "version", "packaging")]
    assert found == ["org.binaryvit", "binaryvit-runtime", "0.1.0", "aar"]
    assert '"org.binaryvit:binaryvit-runtime:0.1.0"' in (APP / "build.gradle.kts").read_text()
