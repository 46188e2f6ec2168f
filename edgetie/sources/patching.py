"""Set attributes of objects and environment variables for a while."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
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


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, then restore those that were there before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
