"""The last token is selected before the head instead of after it."""

from __future__ import annotations

import numpy as np
from small_graphs import WIDTH, X, graph, leave, node, random, rewrite

from edgetie.bundle.names import LAST_TOKEN_NODE
from edgetie.passes.select_last_token import SelectLastToken

SELECT = node("GatherND", ["last", "at"], ["y"], batch_dims=1, name=LAST_TOKEN_NODE)
AT = np.array([[[4]], [[1]]])


def test_selection_moves_above_the_head_and_its_norm() -> None:
    model = graph(
        [
            node("RMSNormalization", ["x", "weight"], ["h"], axis=-1),
            node("Transpose", ["table"], ["t"], perm=[1, 0]),
            node("MatMul", ["h", "t"], ["logits"]),
            node("Mul", ["logits", "factor"], ["last"]),
            SELECT,
        ],
        {
            "weight": random(WIDTH), "table": random(96, WIDTH),
            "factor": np.float32(2), "at": AT,
        },
        {"x": [2, "sequence", WIDTH]},
        [2, 1, 96],
        shapes={n: [2, "sequence", w] for n, w in (("h", WIDTH), ("logits", 96), ("last", 96))},
    )  # fmt: skip
    step = SelectLastToken()
    rewrite(model, step, x=X)
    assert step.changed == 3
    select = next(n for n in model.graph if n.name == LAST_TOKEN_NODE)
    assert select.inputs[0] is model.graph.inputs[0], "above the head and its norm"
    assert [v.shape.numpy() for v in model.graph.outputs] == [(2, 1, 96)]


def test_a_reshape_after_the_head_moves_with_it() -> None:
    model = graph(
        [
            node("MatMul", ["x", "head"], ["flat"]),
            node("Reshape", ["flat", "sizes"], ["last"]),
            SELECT,
        ],
        {"head": random(WIDTH, WIDTH), "sizes": np.array([2, 5, WIDTH]), "at": AT},
        {"x": [1, 10, WIDTH]},
        [2, 1, WIDTH],
        shapes={"flat": [1, 10, WIDTH], "last": [2, 5, WIDTH]},
    )
    rewrite(model, SelectLastToken(), x=X.reshape(1, 10, WIDTH))
    order = [n.op_type for n in model.graph if n.op_type in ("MatMul", "GatherND")]
    assert order == ["GatherND", "MatMul"]


def test_an_operator_that_mixes_tokens_stays_above() -> None:
    model = graph(
        [node("Softmax", ["x"], ["last"], axis=1), SELECT],
        {"at": AT},
        {"x": [2, "sequence", WIDTH]},
        [2, 1, WIDTH],
        shapes={"last": [2, "sequence", WIDTH]},
    )
    leave(model, SelectLastToken())


def test_a_graph_without_the_selection_stays() -> None:
    leave(graph([node("Tanh", ["x"], ["y"])], {}), SelectLastToken())
