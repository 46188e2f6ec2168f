"""Check records read from JSON against the types of their dataclasses."""

from typing import Any, get_args, get_origin, get_type_hints


def require_types(record: Any) -> None:
    """Check every field of a dataclass instance against its annotation.

    Raises:
        TypeError: naming the first field of another type.
    """
    for name, hint in get_type_hints(type(record)).items():
        if not _fits(getattr(record, name), hint):
            raise TypeError(f"{name} is not {getattr(hint, '__name__', hint)}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    return isinstance(value, hint)
