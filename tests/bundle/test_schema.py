"""Fields of a dataclass are checked against its annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from edgetie.bundle.schema import require_types


@dataclass
class Record:
    name: Any = "x"
    size: Any = 1
    limit: Any = None
    ids: Any = field(default_factory=list)
    files: Any = field(default_factory=dict)


Record.__annotations__ = {
    "name": "str", "size": "int", "limit": "int | None", "ids": "list[int]",
    "files": "dict[str, dict[str, Any]]",
}  # fmt: skip


@pytest.mark.parametrize(
    "values", [{}, {"limit": 3}, {"ids": [1, 2]}, {"files": {"a": {"bytes": 1, "sha256": ""}}}]
)
def test_records_that_fit(values: dict[str, Any]) -> None:
    require_types(Record(**values))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 1),
        ("size", "1"),
        ("limit", "3"),
        ("ids", [1, "2"]),
        ("ids", 1),
        ("files", {"a": 1}),
    ],
)
def test_records_that_do_not_fit_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} is not "):
        require_types(Record(**{name: value}))
