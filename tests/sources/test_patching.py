"""Attributes that are set for a while."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

from edgetie.sources.patching import set_attributes


def test_attributes_are_restored_or_deleted_even_after_an_error() -> None:
    one, other = SimpleNamespace(name="a"), SimpleNamespace()
    changes = [(one, "name", "b"), (other, "n", 1)]
    with contextlib.suppress(ZeroDivisionError), set_attributes(changes):
        assert (one.name, other.n) == ("b", 1)
        _ = 1 / 0
    assert vars(one) == {"name": "a"}
    assert vars(other) == {}
