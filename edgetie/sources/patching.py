"""Set attributes of objects for a while."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any


@contextlib.contextmanager
def set_attributes(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Set attributes ``(object, name, value)``, then restore those that were there before."""
    with contextlib.ExitStack() as stack:
        for target, name, value in changes:
            if hasattr(target, name):
                stack.callback(setattr, target, name, getattr(target, name))
            else:
                stack.callback(delattr, target, name)
            setattr(target, name, value)
        yield
