"""Tied parameters of torch modules, and parts of other parameters."""

from __future__ import annotations

import models
import torch

from edgetie.ties.torch_parameters import has_tied_head, partial_ties, tied_parameters


def module() -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(600, 64),
            "head": torch.nn.Linear(64, 600, bias=False),
            "other": torch.nn.Linear(64, 512, bias=False),
        }
    )


def test_parameters_of_one_storage_are_tied() -> None:
    model = module()
    assert tied_parameters(model) == []
    model["head"].weight = model["embedding"].weight
    assert tied_parameters(model) == [("embedding.weight", "head.weight")]
    assert partial_ties(model) == []


def test_a_copy_of_equal_value_is_no_tie() -> None:
    model = module()
    model["head"].weight = torch.nn.Parameter(model["embedding"].weight.detach().clone())
    assert tied_parameters(model) == []


def test_a_part_of_another_parameter_is_named() -> None:
    model = module()
    model["head"].weight = torch.nn.Parameter(model["embedding"].weight.detach()[:512])
    assert tied_parameters(model) == []
    assert partial_ties(model) == ["head.weight is a part of embedding.weight and is stored again"]


def test_the_values_of_head_and_table_decide_whether_they_are_tied() -> None:
    model = models.transformers_model("Llama")
    assert has_tied_head(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert has_tied_head(model)
    with torch.no_grad():
        model.lm_head.weight[7, 3] += 1
    assert has_tied_head(model) is False
    assert has_tied_head(models.hand_written()) is None
