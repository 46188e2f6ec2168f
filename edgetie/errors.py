"""The errors edgetie raises: typed, one line each, with what failed and what to do next.

Every error carries the exit code of the command line: 2 for bad usage or input, 1 for a check
that failed. The library speaks of parameters (``force=True``). The command line spells the same
error with its options (``--force``), see :meth:`EdgetieError.describe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping


def as_argument(parameter: str, value: object = None) -> str:
    """Spell a parameter as Python does: ``force=True``; without a value by its name alone."""
    return parameter if value is None else f"{parameter}={value!r}"


class EdgetieError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what is wrong, and what to do about it.
        parameter: the parameter of the public function that is wrong, if one is.
        value: the value it was given.
        advice: parameters and values that would help, any one of them.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        parameter: str | None = None,
        value: object = None,
        advice: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.parameter, self.value = message, parameter, value
        self.advice = dict(advice or {})

    def __str__(self) -> str:
        return self.describe(as_argument)

    def describe(self, spell: Callable[[str, object], str]) -> str:
        """Compose the error's one line; ``spell`` turns a parameter and its value into text."""
        start = f"{spell(self.parameter, self.value)}: " if self.parameter else ""
        options = " or ".join(spell(name, value) for name, value in self.advice.items())
        return f"{start}{self.message}" + (f"; pass {options}" if options else "")


class SourceError(EdgetieError):
    """What was given is no model that can be exported."""


class ExportError(EdgetieError):
    """A model could be loaded, but not turned into an ONNX graph."""


class BundleError(EdgetieError):
    """A bundle, or a file in it, is missing, truncated, damaged or in the way."""


class AudioError(EdgetieError):
    """A sound cannot be read, or is not what the model takes."""


class ProviderError(EdgetieError):
    """An execution provider is unknown, absent or did not take the model."""


class QuantizeError(EdgetieError):
    """A model cannot be quantized as asked."""


class LimitError(QuantizeError):
    """A limit of accuracy cannot be kept."""

    exit_code = 1


class TieError(EdgetieError):
    """A tied weight is no longer one: names the weight and what broke it."""

    exit_code = 1


class UnfusableError(Exception):
    """The attention cannot become one GroupQueryAttention node; the message gives the reason."""


_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "out of memory")


def summarize(error: BaseException) -> str:
    """Summarize an exception of another library in one line.

    ONNX Runtime's code and source file are left out. Of other messages only the first line is
    kept. An exception without a message is summarized by its type.
    """
    text = " ".join(str(error).split())
    if any(words in text for words in _OUT_OF_MEMORY):
        return "not enough memory; take a smaller batch, a shorter prompt or a smaller model"
    head, separator, rest = text.partition(" : ")
    if separator and head.startswith("[ONNXRuntimeError]"):
        return rest.split(" : ", 2)[-1][:400]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
