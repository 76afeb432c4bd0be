"""Compiles examples/android's Kotlin without the Android SDK, against what android_stubs.txt declares."""

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ANDROID = HERE.parent / "android"
APP = HERE.parents[1] / "examples" / "android" / "app" / "src"


def write_stubs(folder):
    """Writes each class of android_stubs.txt to a Java file of its own."""
    for text in re.split(r"^(?=package )", (HERE / "android_stubs.txt").read_text(), flags=re.M)[1:]:
        package, name = re.match(r"package ([\w.]+);.*?(?:class|interface) (\w+)", text, re.S).groups()
        path = folder / package.replace(".", "/") / f"{name}.java"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def compile_app(folder, classes, flavor, *more):
    """Compiles the app of a flavor, with further sources, and returns the jar, which has Kotlin's library in it.

    Args:
        folder: Where the jar and the stubs are written.
        classes: The archive's classes.jar.
        flavor: "litert1" or "litert2".
        *more: Kotlin files.
    """
    write_stubs(folder / "stubs")
    jar = folder / f"{flavor}.jar"
    options = ["-Werror", "-jvm-target", "17", "-include-runtime", "-cp", classes, "-d", jar]
    sources = [folder / "stubs", ANDROID / "api", APP / "main" / "kotlin", APP / flavor / "kotlin", *more]
    done = subprocess.run([ANDROID / "kotlinc.sh", *options, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return jar
