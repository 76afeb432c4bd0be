"""keep_freed_memory: stop the C library from giving memory back between training steps."""

import ctypes
import platform

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory instead of returning it to the system.

    By default glibc returns every large block as soon as it is freed, and the system hands out zeroed pages again when
    the next layer asks for one; on a CPU that is a good part of a training step. The process then holds its peak
    memory until it ends. Call it once, before training.

    Returns:
        Whether it took effect: it does on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
