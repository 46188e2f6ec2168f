"""Tensors with an entry for every token are found by what computes with them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx import numpy_helper

from edgetie.errors import PruneError
from edgetie.prune.vocabulary_axes import VocabularyAxes

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
model (int64[b, s] input_ids) => (float[b, s, 7] logits) {
    BODY
}"""
SHAPES = {
    "table": (7, 4), "wide": (4, 5), "head": (5, 7), "bias": (7,), "scale": (7, 1),
    "number": (1,),
}  # fmt: skip
PLAIN = """
    scaled = Mul(table, scale)
    x = Gather(scaled, input_ids)
    y = MatMul(x, wide)
    z = MatMul(y, head)
    w = Add(z, bias)
    logits = Mul(w, number)"""


def axes_of(body: str) -> VocabularyAxes:
    proto = onnx.parser.parse_model(GRAPH.replace("BODY", body))
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    for name, array in (arrays | {"pad": np.array(3)}).items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return VocabularyAxes(model, "model.onnx")


def test_table_scale_head_and_bias() -> None:
    axes = axes_of(PLAIN)
    names = {str(value.name): axis for value, axis in axes.initializers}
    assert names == {"table": -2, "scale": -2, "head": -1, "bias": -1}
    assert not axes.token_constants


def test_a_token_that_is_compared_with() -> None:
    axes = axes_of(
        """
    is_pad = Equal(input_ids, pad)
    tokens = Where(is_pad, pad, input_ids)"""
        + PLAIN.replace("input_ids", "tokens")
    )
    assert {(node.op_type, index) for node, index in axes.token_constants} == {
        ("Equal", 1), ("Where", 1),
    }  # fmt: skip


def test_the_size_in_a_reshape() -> None:
    axes = axes_of(
        PLAIN.replace("logits = Mul(w, number)", "")
        + """
    shape = Shape <start = 0, end = 2> (w)
    count = Constant <value = int64[1] {7}> ()
    all = Concat <axis = 0> (shape, count)
    logits = Reshape(w, all)"""
    )
    assert [(node.op_type, index) for node, index in axes.size_constants] == [("Concat", 1)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            PLAIN.replace("Gather(scaled, input_ids)", "Gather(scaled, shifted)").replace(
                "scaled = ", "shifted = Add(input_ids, pad)\n scaled = "
            ),
            r"shifted \(Add\) computes with the numbers of tokens",
        ),
        (PLAIN.replace("Mul(w, number)", "Softmax(w)"), r"logits \(Softmax\) reads or computes"),
        (PLAIN + "\n again = MatMul(logits, table)", "adds up the entries of all tokens"),
        (
            PLAIN.replace("scaled = ", "other = Gather(table, pad)\n scaled = "),
            r"other \(Gather\) looks up table by other things than tokens",
        ),
        (
            PLAIN.replace("scaled = ", "part = ReduceMean(table)\n scaled = "),
            r"part \(ReduceMean\) reads or computes",
        ),
    ],
    ids=["offset", "softmax", "second product", "fixed row", "mean"],
)  # fmt: skip
def test_what_is_not_understood_is_named(body: str, problem: str) -> None:
    with pytest.raises(PruneError, match=problem):
        axes_of(body)
