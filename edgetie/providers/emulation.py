"""Whether latencies measured in this process are those of real hardware."""

import logging
import platform
import struct
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

_ELF_MACHINES = {
    3: {"i386", "i486", "i586", "i686"},
    21: {"ppc64", "ppc64le"},
    22: {"s390x"},
    40: {"arm", "armv6l", "armv7l", "armv8l"},
    62: {"x86_64", "amd64", "i386", "i486", "i586", "i686"},
    183: {"aarch64", "arm64", "armv7l", "armv8l"},
    243: {"riscv64", "riscv32"},
}
"""ELF machine numbers, and what :func:`platform.machine` may return without emulation."""

_SIMULATED_ON = {"qnn": {"x86_64", "amd64"}}
"""Machines without the provider's accelerator (HTP), where its library simulates it."""


def latency_problem(provider: str) -> str | None:
    """Explain why latencies of ``provider`` in this process are not valid; ``None`` if they are."""
    machine = platform.machine().lower()
    if machine in _SIMULATED_ON.get(provider, ()):
        return f"{provider} on {machine} is a simulator"
    if sys.platform == "darwin":
        return "this process is translated by Rosetta" if _is_translated() else None
    return describe_emulation(Path("/proc/thread-self/exe"), machine)


def describe_emulation(executable: Path, machine: str) -> str | None:
    """Describe the emulation if the ELF header of ``executable`` names another machine.

    The kernel's ``/proc/thread-self/exe`` is the emulator in an emulated process.
    """
    try:
        with executable.open("rb") as file:
            header = file.read(20)
    except OSError:
        logger.debug("%s: cannot be read", executable, exc_info=True)
        return None
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    order = "<" if header[5] == 1 else ">"
    (number,) = struct.unpack_from(f"{order}H", header, 18)
    if machine in _ELF_MACHINES.get(number, {machine}):
        return None
    return f"this {machine} process is emulated"


def _is_translated() -> bool:
    import ctypes
    import ctypes.util

    library = ctypes.CDLL(ctypes.util.find_library("c"))
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    name = b"sysctl.proc_translated"
    failed = library.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return not failed and value.value == 1
