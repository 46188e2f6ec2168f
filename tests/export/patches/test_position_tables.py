"""Position embedding tables: found in a trial run, read at other positions."""

from __future__ import annotations

import torch
from torch import nn

from edgetie.export.patches.position_tables import (
    FindPositionTables,
    ReadPositionTables,
    trial_ids,
)


class Offset(nn.Module):
    """Positions from 2 on; the token and type tables are not read at consecutive rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 4), nn.Embedding(20, 4)
        self.types = nn.Embedding(20, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1]) + 2
        return self.tokens(ids) + self.positions(positions) + self.types(torch.zeros_like(ids))


def find(module: nn.Module) -> dict[str, int]:
    finder = FindPositionTables()
    with finder:
        module(trial_ids(20, [5]))
    return finder.tables(module)


def test_only_position_tables_are_found_and_read_elsewhere() -> None:
    module = Offset()
    tables = find(module)
    assert tables == {"positions.weight": 2}
    ids = torch.tensor([[1, 2, 3]])
    with ReadPositionTables(module, tables, torch.tensor([[0, 0, 1]])):
        output = module(ids)
    other = module.tokens.weight[ids] + module.types.weight[0]
    torch.testing.assert_close(output, other + module.positions.weight[torch.tensor([2, 2, 3])])


def test_a_table_that_is_also_read_for_tokens_is_not_a_position_table() -> None:
    module = Offset()
    module.tokens.weight = module.positions.weight
    assert find(module) == {}


def test_lookups_of_another_length_stay() -> None:
    module = Offset()
    ids = torch.tensor([[1, 2, 3]])
    with ReadPositionTables(module, find(module), torch.zeros(1, 7, dtype=torch.long)):
        output = module(ids)
    torch.testing.assert_close(output, module(ids))


def test_trial_ids_fit_the_vocabulary_and_are_not_padding() -> None:
    assert trial_ids(None, []).tolist() == [[7, 3, 11, 5, 9]]
    assert trial_ids(6, [None]).tolist() == [[1, 3, 5, 5, 3]]
    assert trial_ids(320, [11, 13, 3]).tolist() == [[7, 14, 14, 5, 9]]
