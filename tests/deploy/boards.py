"""Emulated MPS2 boards, and how a program that runs an exported model is built for them and run."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np

PROGRAMS = Path(__file__).parent / "c_programs"
ARE_INSTALLED = bool(shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm"))


@dataclasses.dataclass(frozen=True)
class Board:
    """A machine of QEMU's: its processor, the compiler's options, and the instructions of a tick of its timer."""

    machine: str
    processor: str
    options: tuple[str, ...]
    instructions_per_tick: float


BOARDS = {
    board.processor: board
    for board in (
        Board("mps2-an386", "cortex-m4", ("-mfpu=fpv4-sp-d16",), 1e9 / 25e6),
        Board("mps2-an500", "cortex-m7", ("-mfpu=fpv5-d16",), 1e9 / 25e6),
        Board("mps3-an547", "cortex-m55", (), 1e9 / 32e6),
    )
}


def build(folder: Path, source: str, images: np.ndarray, board: Board, *options: str) -> Path:
    """Returns the program that runs the header `source`, of a model named `model`, on uint8 images."""
    (folder / "model.h").write_text(source)
    rows = ",\n".join("{" + ", ".join(map(str, image.ravel())) + "}" for image in images)
    declaration = f"static const uint8_t images[IMAGE_COUNT][MODEL_INPUT_SIZE] = {{{rows}}};"
    (folder / "images.h").write_text(f"#define IMAGE_COUNT {len(images)}\n{declaration}\n")
    command = ["arm-none-eabi-gcc", "-O2", "-mthumb", f"-mcpu={board.processor}", "-mfloat-abi=hard", *board.options]
    command += ["-nostartfiles", f"-I{folder}", "-T", PROGRAMS / "mps2.ld", PROGRAMS / "board.c"]
    program = folder / f"{board.processor}.elf"
    subprocess.run([*command, *options, "-o", program], check=True)
    return program


def run(program: Path, board: Board) -> tuple[np.ndarray, int]:
    """Returns the outputs of all images, and the instructions that the last one took."""
    # One instruction takes a nanosecond of the board's time.
    emulator = ["qemu-system-arm", "-M", board.machine, "-icount", "shift=0", "-semihosting-config", "enable=on"]
    emulator += ["-display", "none", "-monitor", "none", "-serial", "none", "-kernel", program]
    done = subprocess.run(emulator, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{board.machine} stopped with {done.returncode}: {done.stderr[-500:]}")
    *outputs, ticks = (int(word, 16) for word in (done.stdout + done.stderr).split())
    return np.array(outputs, np.uint32).view(np.float32), round(ticks * board.instructions_per_tick)
