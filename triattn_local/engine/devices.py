"""What there is to compute on, and how much memory it has left: asked of the library and of the system.

Knows nothing of models and of what is going to be put there.
"""

from __future__ import annotations

import ctypes
import functools
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DoesNotFitError, UsageError
from ..support.formats import size
from . import native

_TYPES = ("cpu", "gpu", "igpu", "accel", "meta")
"""``enum ggml_backend_dev_type``, in its order"""


@dataclass(frozen=True)
class Device:
    """One device that the library can compute on. Memory in bytes."""

    name: str
    description: str
    free_bytes: int
    total_bytes: int
    kind: str = "cpu"
    """cpu, gpu, igpu (a GPU in the host's memory), accel (a helper of the CPU) or meta (several as one)"""
    backend: str = ""
    """CPU, CUDA, Vulkan, Metal, ..."""
    handle: int = 0
    """``ggml_backend_dev_t``"""

    @property
    def is_gpu(self) -> bool:
        return self.kind in ("gpu", "igpu")


@functools.cache
def _ggml() -> ctypes.CDLL:
    # libggml is a dependency of libllama: the loader finds its symbols through the same handle
    lib = native.library()
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "ggml_backend_reg_count": (size, []),
        "ggml_backend_reg_get": (pointer, [size]),
        "ggml_backend_reg_name": (ctypes.c_char_p, [pointer]),
        "ggml_backend_dev_count": (size, []),
        "ggml_backend_dev_get": (pointer, [size]),
        "ggml_backend_dev_name": (ctypes.c_char_p, [pointer]),
        "ggml_backend_dev_description": (ctypes.c_char_p, [pointer]),
        "ggml_backend_dev_type": (ctypes.c_int, [pointer]),
        "ggml_backend_dev_backend_reg": (pointer, [pointer]),
        "ggml_backend_dev_memory": (None, [pointer] + [ctypes.POINTER(size)] * 2),
        "ggml_backend_dev_buffer_type": (pointer, [pointer]),
        "ggml_backend_buft_alloc_buffer": (pointer, [pointer, size]),
        "ggml_backend_buffer_free": (None, [pointer]),
    }
    for name, (restype, argtypes) in prototypes.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
    return lib


def backends() -> list[str]:
    """The backends that the library was built with, whether or not they have a device here.

    Raises
    ------
    BackendMissingError
        There is no patched library.
    """
    lib = _ggml()
    return [
        lib.ggml_backend_reg_name(lib.ggml_backend_reg_get(i)).decode() for i in range(lib.ggml_backend_reg_count())
    ]


def devices() -> list[Device]:
    """The devices of the loaded library, in its order.

    Raises
    ------
    BackendMissingError
        There is no patched library.
    """
    lib = _ggml()
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        handle = lib.ggml_backend_dev_get(i)
        free, total = _memory(handle)
        found.append(
            Device(
                name=lib.ggml_backend_dev_name(handle).decode(),
                description=lib.ggml_backend_dev_description(handle).decode().strip(),
                free_bytes=free,
                total_bytes=total,
                kind=_TYPES[lib.ggml_backend_dev_type(handle)],
                backend=lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(handle)).decode(),
                handle=handle,
            )
        )
    return found


def _memory(handle: int) -> tuple[int, int]:
    """Free bytes and bytes in all, of this moment."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _ggml().ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def used_bytes(device: Device) -> int:
    """Memory in use on a device at this moment: of a GPU by everybody, of the CPU by this process.

    0 where the system does not say.
    """
    if device.is_gpu:
        free, total = _memory(device.handle)
        return total - free
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's: what the allocator keeps for later is not in use
    with suppress(OSError):
        resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return resident_pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def check_cap(device: Device, n_bytes: int) -> None:
    """Whether ``capped`` can be asked of a device.

    Raises
    ------
    UsageError
        It is no GPU, or has less memory than that.
    """
    if not device.is_gpu:
        raise UsageError(
            f"{device.name} is no GPU", where="--vram", fix="leave it out, or build for a GPU: docs/gpu.md tells how"
        )
    if n_bytes > device.total_bytes:
        raise UsageError(
            f"{size(n_bytes)} is more than the {size(device.total_bytes)} of {device.name}",
            where="--vram",
            fix="give less, or leave it out",
        )


@contextmanager
def capped(device: Device, n_bytes: int) -> Iterator[int]:
    """Make a device as small as one of ``n_bytes`` in all, by holding the rest of its memory. Yields what is held.

    Raises
    ------
    UsageError
        As ``check_cap``.
    DoesNotFitError
        Too much of it is in use already.
    """
    check_cap(device, n_bytes)
    lib = _ggml()
    n_held = device.total_bytes - n_bytes
    ballast = None
    if n_held:
        ballast = lib.ggml_backend_buft_alloc_buffer(lib.ggml_backend_dev_buffer_type(device.handle), n_held)
        if not ballast:
            raise DoesNotFitError(
                f"cannot hold {size(n_held)} of {device.name}, {size(_memory(device.handle)[0])} are free",
                where="--vram",
                fix="end what else uses the device",
            )
    try:
        yield n_held
    finally:
        if ballast:
            lib.ggml_backend_buffer_free(ballast)


def nvidia_driver() -> str | None:
    """Version of NVIDIA's driver; None without one."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def free_memory() -> int:
    """Bytes of main memory that a program can have without making others swap.

    Linux counts them; elsewhere three quarters of all memory are taken for free. What a container or a limit of this
    process (``ulimit -v``) leaves is less.
    """
    return min([_free_here(), *_left_by_groups(), *_left_by_limit()])


def _left_by_limit() -> Iterator[int]:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        with suppress(OSError):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            yield max(0, most - pages * os.sysconf("SC_PAGE_SIZE"))


def _left_by_groups(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Of each control group (version 2) around this process that has a limit: what it may still have."""
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    inside = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    folder = groups / inside
    while True:
        with suppress(OSError, ValueError):  # no limit is the word "max"
            most = int((folder / "memory.max").read_text(encoding="ascii"))
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            yield max(0, most - used + int(stat.get("inactive_file", 0)))
        if folder == groups or groups not in folder.parents:
            return
        folder = folder.parent


def _free_here() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4
