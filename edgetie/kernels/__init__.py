"""edgetie's execution provider: a library in C, a plugin of ONNX Runtime 1.24 or newer.

:func:`get_library_path` and :func:`get_ep_names` are ONNX Runtime's convention for packages of
plugins::

    import onnxruntime, edgetie.kernels

    (name,) = edgetie.kernels.get_ep_names()
    onnxruntime.register_execution_provider_library(name, edgetie.kernels.get_library_path())
"""

import struct
import sys
from pathlib import Path

from edgetie.errors import ProviderError, summarize

OLDEST_RUNTIME = (1, 24)
"""ONNX Runtime's first version with kernels in plugins."""

REASON_FILE = "not_built.txt"
"""File in place of the library if an installation could not build it: it says why."""


def library_name(platform: str = sys.platform) -> str:
    """Return the file name of the library on a platform: ``sys.platform`` or a wheel's tag."""
    if platform.startswith(("darwin", "macosx")):
        return "libedgetie_kernels.dylib"
    return "edgetie_kernels.dll" if platform.startswith("win") else "libedgetie_kernels.so"


def get_library_path() -> str:
    """Return the path of the library.

    Raises:
        ProviderError: if it was not built.
    """
    folder = Path(__file__).resolve().parent
    library = folder / library_name()
    if library.is_file():
        return str(library)
    reason = folder / REASON_FILE
    why = f" ({reason.read_text(encoding='utf-8').strip()})" if reason.is_file() else ""
    raise ProviderError(
        f"its library was not built{why}; python -m edgetie.kernels.build builds it",
        parameter="provider",
        value="edgetie",
    )


def get_ep_names() -> list[str]:
    """Return the names of the execution providers in the library."""
    return ["EdgetieExecutionProvider"]


def instruction_set() -> str:
    """Return the name of the instruction set that the kernels use on this processor.

    Raises:
        ProviderError: if the library was not built or does not load.
    """
    import ctypes

    path = get_library_path()
    try:
        if _is_cut_short(Path(path)):
            raise OSError("the file is cut short")
        function = ctypes.CDLL(path).edgetie_instruction_set
    except (OSError, AttributeError) as error:
        raise ProviderError(
            f"its library does not load ({summarize(error)}); python -m edgetie.kernels.build "
            "builds it again",
            parameter="provider",
            value="edgetie",
        ) from error
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def _is_cut_short(library: Path) -> bool:
    """Whether an ELF file lacks its end, where its sections are listed: loading it would crash."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return False
    (sections,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    end: int = sections + size * count
    return library.stat().st_size < end


def explain_absence() -> str | None:
    """Explain why the provider cannot be used in this process; ``None`` if it can."""
    try:
        instruction_set()
    except ProviderError as error:
        return error.message
    import onnxruntime

    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_RUNTIME:
        return None
    oldest = ".".join(map(str, OLDEST_RUNTIME))
    return f"needs onnxruntime {oldest} or newer, and {version} is installed"
