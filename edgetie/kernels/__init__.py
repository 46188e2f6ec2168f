"""edgetie's execution provider: a library in C, a plugin of ONNX Runtime 1.24 or newer.

:func:`get_library_path` and :func:`get_ep_names` are ONNX Runtime's convention for packages of
plugins::

    import onnxruntime, edgetie.kernels

    (name,) = edgetie.kernels.get_ep_names()
    onnxruntime.register_execution_provider_library(name, edgetie.kernels.get_library_path())
"""

from pathlib import Path

from edgetie.errors import ProviderError, summarize

OLDEST_RUNTIME = (1, 24)
"""ONNX Runtime's first version with kernels in plugins."""


def get_library_path() -> str:
    """Return the path of the library.

    Raises:
        ProviderError: if it was not built.
    """
    from edgetie.kernels.build import REASON_FILE, library_name

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

    try:
        function = ctypes.CDLL(get_library_path()).edgetie_instruction_set
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
