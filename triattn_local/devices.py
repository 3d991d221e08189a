"""What there is to compute on, and how much memory it has left: asked of the library and of the system.

Knows nothing of models and of what is going to be put there.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from . import native


@dataclass(frozen=True)
class Device:
    """One device that the library can compute on. Memory in bytes."""

    name: str
    description: str
    free_bytes: int
    total_bytes: int

    @property
    def is_gpu(self) -> bool:
        return self.name.upper() not in ("CPU", "BLAS", "ACCEL")


def devices() -> list[Device]:
    """The devices of the loaded library, in its order.

    Raises
    ------
    BackendMissingError
        There is no patched library.
    """
    # libggml is a dependency of libllama: the loader finds its symbols through the same handle
    lib = native.library()
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for function in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description):
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_memory.restype = None
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + [ctypes.POINTER(ctypes.c_size_t)] * 2
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        name, description = lib.ggml_backend_dev_name(device), lib.ggml_backend_dev_description(device)
        found.append(Device(name.decode(), description.decode().strip(), free.value, total.value))
    return found


def free_memory() -> int:
    """Bytes of main memory that a program can have without making others swap.

    Linux counts them; elsewhere three quarters of all memory are taken for free.
    """
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4
