"""disable_malloc_trim: stop the C library from giving memory back between training steps."""

import ctypes
import platform

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def disable_malloc_trim() -> bool:
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
    # The arenas of threads but the first are never kept, so there is one; a trim threshold of -1 means never.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**28), (_M_ARENA_MAX, 1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
