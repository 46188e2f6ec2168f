"""The errors that edgetie raises: typed, one line each, with what is wrong and what to do."""

from collections.abc import Callable, Mapping
from typing import Any


def as_argument(parameter: str, value: object = None) -> str:
    """Spell a parameter as Python does: ``force=True``; without a value by its name alone."""
    return parameter if value is None else f"{parameter}={value!r}"


class EdgetieError(Exception):
    """Base of all errors that edgetie raises on purpose.

    The command line exits with ``exit_code``: 2 for bad input, 1 for a check that failed. It spells
    parameters as its options, see :meth:`describe`.

    Args:
        message: what is wrong, and what to do about it.
        parameter: the parameter of the public function that is wrong, if one is.
        value: the value it was given.
        advice: parameters and values, each of which would help.
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
        joint = " or" if ";" in self.message else ";"
        return f"{start}{self.message}" + (f"{joint} pass {options}" if options else "")

    def to_dict(self) -> dict[str, Any]:
        """Describe the error in JSON for another process, see :func:`error_from_dict`."""
        plain = isinstance(self.value, str | int | float | None)
        return {
            "type": type(self).__name__,
            "message": self.message,
            "parameter": self.parameter,
            "value": self.value if plain else str(self.value),
            "advice": self.advice,
        }


class SourceError(EdgetieError):
    """The source is not a model that can be exported."""


class ExportError(EdgetieError):
    """A model was loaded but cannot be converted to an ONNX graph."""


class BundleError(EdgetieError):
    """A bundle or a file in it is missing, truncated, damaged or in the way of an output."""


class AudioError(EdgetieError):
    """An audio file cannot be read or does not suit the model."""


class ImageError(EdgetieError):
    """An image cannot be read or does not suit the model."""


class ConstraintError(EdgetieError):
    """A constraint on answers is invalid, or the library for it is absent or cannot apply it."""


class ProviderError(EdgetieError):
    """An execution provider is unknown, absent or does not run the model."""


class QuantizeError(EdgetieError):
    """A model cannot be quantized with these settings."""


class LimitError(QuantizeError):
    """A limit on the loss of accuracy cannot be met."""

    exit_code = 1


class PruneError(EdgetieError):
    """A vocabulary cannot be pruned. The message names the file, the node or the tensor."""


class PruneMismatchError(PruneError):
    """The logits or the tokens of a pruned model differ from those of its source."""

    exit_code = 1


class TieError(EdgetieError):
    """A tied weight is no longer one tensor. The message names the weight and what split it."""

    exit_code = 1


def error_from_dict(data: Mapping[str, Any]) -> EdgetieError:
    """Make the error that another process described with :meth:`EdgetieError.to_dict`."""
    kind = globals().get(data["type"], BundleError)
    error: EdgetieError = kind(
        data["message"],
        parameter=data.get("parameter"),
        value=data.get("value"),
        advice=data.get("advice"),
    )
    return error


class UnfusableError(Exception):
    """The attention cannot become one GroupQueryAttention node; the message gives the reason."""


_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "out of memory")


def summarize(error: BaseException) -> str:
    """Summarize an exception of another library in one line.

    ONNX Runtime's code and source file are left out. Of other messages only the first line is
    kept. An exception without a message is summarized by its type.
    """
    text = " ".join(str(error).split())
    if any(phrase in text for phrase in _OUT_OF_MEMORY):
        return "not enough memory; take a smaller batch, a shorter prompt or a smaller model"
    head, separator, rest = text.partition(" : ")
    if separator and head.startswith("[ONNXRuntimeError]"):
        return rest.split(" : ", 2)[-1][:400]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
