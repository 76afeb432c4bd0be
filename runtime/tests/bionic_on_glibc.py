"""libc.so and libm.so of Android for a Linux board: each function that a library imports jumps to glibc's of that name.

That does for functions whose arguments are laid out the same in bionic and in glibc: for all of android/bionic.txt,
where mutexes and conditions are initialized to zeros and threads have no attributes.
"""

import subprocess
from pathlib import Path

SYMBOLS = Path(__file__).parents[1] / "android" / "bionic.txt"


def write_bionic(library, folder):
    """Writes the libraries that an Android library for 64-bit ARM needs to a folder, for LD_LIBRARY_PATH."""
    listing = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True, check=True).stdout
    imported = {line.split()[-1] for line in listing.splitlines()}
    rows = [line.split() for line in SYMBOLS.read_text().splitlines() if not line.startswith("#")]
    for bionic in ("libc", "libm"):
        names = [name for of, name in rows if of == bionic and f"{name}@LIBC" in imported]
        # One at sign: not the default version, so that the jump itself doesn't lead back here.
        jumps = [f".globl to_{name}\nto_{name}: b {name}\n.symver to_{name}, {name}@LIBC\n" for name in names]
        source, versions = folder / f"{bionic}.s", folder / f"{bionic}.map"
        source.write_text("".join(jumps))
        versions.write_text("LIBC { global: *; };\n")
        options = [f"-Wl,-soname,{bionic}.so,--version-script={versions}", "-o", folder / f"{bionic}.so", "-lm"]
        subprocess.run(["aarch64-linux-gnu-gcc", "-shared", "-nostartfiles", source, *options], check=True)
