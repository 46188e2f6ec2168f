"""Tied tables in plain files, with operators of many kinds between them and their uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS, WIDTH = 320, 64
IDS = np.array([[1, 5, 319, 0, 7, 22, 13], [300, 2, 2, 64, 128, 250, 99]])
RANDOM = np.random.default_rng(3)
TABLE = (RANDOM.normal(size=(ROWS, WIDTH)) / 2).astype(np.float32)
ROW_FACTORS = RANDOM.uniform(0.5, 2, (ROWS, 1)).astype(np.float32)
COLUMN_FACTORS = RANDOM.uniform(0.5, 2, WIDTH).astype(np.float32)
LOW_RANK = RANDOM.normal(size=(ROWS, 8)).astype(np.float32) / 4
LOW_RANK_COLUMNS = RANDOM.normal(size=(8, WIDTH)).astype(np.float32) / 4
LAYER = (RANDOM.normal(size=(WIDTH, WIDTH)) / 8).astype(np.float32)
Nodes = list[onnx.NodeProto]


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), output.split(), **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def head(table: str = "table") -> Nodes:
    """A product with the transpose of a table."""
    return [
        node("Transpose", table, "transposed", perm=[1, 0]),
        node("MatMul", "h transposed", "logits"),
    ]


LOOKUP = [node("Gather", "table input_ids", "x")]
BODY = [
    node("LayerNormalization", "x gain bias", "normed", axis=-1),
    node("MatMul", "normed layer", "m"),
    node("Add", "x m", "h"),
]


@dataclass(frozen=True)
class Form:
    """A graph with a tied table.

    Attributes:
        head: nodes from the hidden state ``h`` to ``logits``.
        constants: besides the table and the layer between.
        lookup: nodes from ``input_ids`` to ``x``.
        rows: number of logits.
        table: the table as it is stored.
        opset: of ONNX.
    """

    head: Nodes = field(default_factory=head)
    constants: dict[str, Any] = field(default_factory=dict)
    lookup: Nodes = field(default_factory=lambda: LOOKUP)
    rows: int = ROWS
    table: np.ndarray = field(default_factory=lambda: TABLE)
    opset: int = 17

    def save(self, path: Path) -> Path:
        """Write it as an ``.onnx`` file."""
        constants = {
            "gain": np.ones(WIDTH, np.float32),
            "bias": np.zeros(WIDTH, np.float32),
            "layer": LAYER,
            "table": self.table,
        } | self.constants
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        logits = ["batch", "sequence", self.rows]
        graph = helper.make_graph(
            [*self.lookup, *BODY, *self.head],
            "tied",
            [ids],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def run(path: Path, ids: np.ndarray = IDS) -> np.ndarray:
    """Compute the logits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["logits"], {"input_ids": ids})[0]
    return result


def stored_tables(path: Path, size: int = ROWS * WIDTH) -> list[str]:
    """The types of stored tensors that are about as large as the table, each place once."""
    places = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = (entries.get("offset", "0"), entries["location"]) if entries else tensor.name
        if size // 2 <= np.prod(tensor.dims) <= 2 * size:
            places[place] = TensorProto.DataType.Name(tensor.data_type)
    return list(places.values())


def scaled(op_type: str, factor: Any) -> Form:
    """The head multiplies with ``op_type(table, factor)``."""
    return Form([node(op_type, "table factor", "scaled"), *head("scaled")], {"factor": factor})


def normalized(*nodes: onnx.NodeProto, opset: int = 17, **constants: Any) -> Form:
    """The head multiplies with the table's normalized rows, ``rows``."""
    return Form([*nodes, *head("rows")], constants, opset=opset)


HALF = TABLE.astype(np.float16)
BFLOAT = TABLE.astype(ir.DataType.BFLOAT16.numpy())
EXTRA = RANDOM.normal(size=(5, WIDTH)).astype(np.float32) / 2
EMBED = node(
    "EmbedLayerNormalization", "ids32 segments table positions kinds gain bias", "x mask_index",
    domain="com.microsoft",
)  # fmt: skip
EMBED_CONSTANTS = {
    "positions": RANDOM.normal(size=(16, WIDTH)).astype(np.float32),
    "kinds": RANDOM.normal(size=(2, WIDTH)).astype(np.float32),
    "nothing": np.array(0, np.int32),
}
ONE_HOT = [
    node("OneHot", "input_ids depth values", "vectors", axis=-1),
    node("MatMul", "vectors table", "x"),
]
EQUAL = [
    node("Unsqueeze", "input_ids last", "column"),
    node("Equal", "column range", "flags"),
    node("Cast", "flags", "vectors", to=TensorProto.FLOAT),
    node("MatMul", "vectors table", "x"),
]

MOVED = {
    "a number": scaled("Mul", np.float32(0.125)),
    "a number, divided": scaled("Div", np.float32(8)),
    "factors of rows": scaled("Mul", ROW_FACTORS),
    "divisors of rows": scaled("Div", ROW_FACTORS),
    "factors of columns": scaled("Mul", COLUMN_FACTORS),
    "divisors of columns": scaled("Div", COLUMN_FACTORS[None]),
    "a number added": scaled("Add", np.float32(0.25)),
    "numbers of rows subtracted": scaled("Sub", ROW_FACTORS),
    "numbers of columns added": scaled("Add", COLUMN_FACTORS),
    "negative": Form([node("Neg", "table", "negative"), *head("negative")]),
    "a factor on both sides": Form(
        [node("Mul", "table small", "scaled"), *head("scaled")],
        {"small": np.float32(0.125), "large": np.float32(8)},
        [node("Mul", "table large", "grown"), node("Gather", "grown input_ids", "x")],
    ),
    "factors of rows and columns at the look-up": Form(
        head(),
        {"rows": ROW_FACTORS, "columns": COLUMN_FACTORS},
        [
            node("Mul", "table rows", "a"), node("Div", "a columns", "b"), node("Tanh", "b", "c"),
            node("Gather", "c input_ids", "x"),
        ],
    ),
    "two look-ups": Form(
        head(),
        {"factor": COLUMN_FACTORS},
        [
            node("Mul", "table factor", "scaled"),
            node("Gather", "scaled input_ids", "a"),
            node("Gather", "table input_ids", "b"),
            node("Add", "a b", "x"),
        ],
    ),
    "L2": normalized(node("LpNormalization", "table", "rows", axis=1, p=2)),
    "L1": normalized(node("LpNormalization", "table", "rows", axis=-1, p=1)),
    "L2 in steps": normalized(
        node("ReduceL2", "table", "norms", axes=[1], keepdims=1),
        node("Max", "norms tiny", "divisors"),
        node("Div", "table divisors", "rows"),
        tiny=np.float32(1e-12),
    ),
    "RMS": normalized(
        node("Pow", "table two", "squares"),
        node("ReduceMean", "squares", "means", axes=[-1], keepdims=1),
        node("Add", "means tiny", "shifted"),
        node("Sqrt", "shifted", "roots"),
        node("Div", "table roots", "unit"),
        node("Mul", "unit factor", "rows"),
        two=np.float32(2), tiny=np.float32(1e-6), factor=COLUMN_FACTORS,
    ),
    "RMSNormalization": normalized(
        node("RMSNormalization", "table factor", "rows", axis=-1, epsilon=1e-6),
        opset=23, factor=COLUMN_FACTORS,
    ),
    "minus the mean": normalized(
        node("ReduceMean", "table", "means", axes=[1], keepdims=1),
        node("Sub", "table means", "rows"),
    ),
    "minus the mean of all rows": normalized(
        node("ReduceMean", "table", "means", axes=[0], keepdims=1),
        node("Sub", "table means", "rows"),
    ),
    "LayerNormalization": normalized(
        node("LayerNormalization", "table factor shift", "rows", axis=1, epsilon=1e-3),
        factor=COLUMN_FACTORS, shift=np.linspace(-1, 1, WIDTH, dtype=np.float32),
    ),
    "LayerNormalization at the look-up": Form(
        head(),
        {"factor": COLUMN_FACTORS},
        [node("LayerNormalization", "table factor", "rows"), node("Gather", "rows input_ids", "x")],
    ),
    "the first rows": Form(
        [node("Slice", "table zero end", "rows"), *head("rows")],
        {"zero": ints(0), "end": ints(310)},
        rows=310,
    ),
    "a few rows": Form(
        [node("Slice", "table start end", "rows"), *head("rows")],
        {"start": ints(10), "end": ints(50)},
        rows=40,
    ),
    "every other row backwards": Form(
        [node("Slice", "table start end axes steps", "rows"), *head("rows")],
        {"start": ints(-1), "end": ints(-(1 << 60)), "axes": ints(0), "steps": ints(-2)},
        rows=ROWS // 2,
    ),
    "rows looked up in a part": Form(
        head(),
        {"start": ints(3), "end": ints(1 << 40), "three": ints(3)},
        [
            node("Slice", "table start end", "part"),
            node("Sub", "input_ids three", "shifted"),  # below zero: from the end
            node("Gather", "part shifted", "x"),
        ],
    ),
    "selected rows": Form(
        [node("Gather", "table selected", "rows"), *head("rows")],
        {"selected": RANDOM.permutation(ROWS)[:300]},
        rows=300,
    ),
    "a part of the columns": Form(
        [
            node("Slice", "table start end axes", "part"),
            node("Slice", "h start end last", "h2"),
            node("Transpose", "part", "transposed", perm=[1, 0]),
            node("MatMul", "h2 transposed", "logits"),
        ],
        {"start": ints(16), "end": ints(WIDTH), "axes": ints(1), "last": ints(2)},
    ),
    "halves of the columns": Form(
        [
            node("Split", "table", "left right", axis=1),
            node("Concat", "right left", "swapped", axis=1),
            *head("swapped"),
        ],
    ),
    "extra rows": Form(
        [node("Concat", "table extra", "rows", axis=0), *head("rows")],
        {"extra": EXTRA}, rows=ROWS + 5,
    ),
    "extra rows at the look-up": Form(
        head(),
        {"extra": EXTRA, "five": ints(5)},
        [
            node("Concat", "extra table", "rows", axis=0),
            node("Gather", "rows input_ids", "x"),
        ],
    ),
    "rows of zeros": Form(
        [node("Pad", "table pads", "rows"), *head("rows")], {"pads": ints(0, 0, 64, 0)}, rows=384
    ),
    "rows of zeros at the look-up": Form(
        head(),
        {"pads": ints(2, 0, 64, 0)},
        [node("Pad", "table pads", "rows"), node("Gather", "rows input_ids", "x")],
    ),
    "a masked row": Form(
        [node("Where", "mask table zero", "rows"), *head("rows")],
        {"mask": np.arange(ROWS)[:, None] != 7, "zero": np.float32(0)},
    ),
    "replaced rows": Form(
        [node("ScatterND", "table places rows", "patched"), *head("patched")],
        {"places": np.array([[3], [299]]), "rows": EXTRA[:2]},
    ),
    "replaced rows at the look-up": Form(
        head(),
        {"places": np.array([[0], [319], [7]]), "rows": EXTRA[:3]},
        [
            node("ScatterND", "table places rows", "patched"),
            node("Gather", "patched input_ids", "x"),
        ],
    ),
    "replaced elements": Form(
        [node("ScatterElements", "table places zeros", "patched"), *head("patched")],
        {"places": np.full((1, WIDTH), 7), "zeros": np.zeros((1, WIDTH), np.float32)},
    ),
    "norms that are repeated": normalized(
        node("ReduceL2", "table", "norms", axes=[1], keepdims=1),
        node("Expand", "norms whole", "divisors"),
        node("Div", "table divisors", "rows"),
        whole=ints(ROWS, WIDTH),
    ),
    "a gain that is filled": normalized(
        node("ConstantOfShape", "whole", "gain2", value=numpy_helper.from_array(np.float32([2]))),
        node("LayerNormalization", "table gain2", "rows"),
        whole=ints(WIDTH),
    ),
    "repeated for each batch item": Form(
        [
            node("Transpose", "table", "transposed", perm=[1, 0]),
            node("Unsqueeze", "transposed zero", "one"),
            node("Shape", "input_ids", "batch", start=0, end=1),
            node("Concat", "batch sizes", "whole", axis=0),
            node("Expand", "one whole", "batches"),
            node("MatMul", "h batches", "logits"),
        ],
        {"zero": ints(0), "sizes": ints(WIDTH, ROWS)},
    ),
    "a product of weights": Form(
        [node("Gemm", "layer2 table", "projected", transB=1),
         node("MatMul", "h projected", "logits")],
        {"layer2": LAYER * 8},
    ),
    "doubles": Form(
        [node("Cast", "table", "wide", to=TensorProto.FLOAT), *head("wide")],
        lookup=[
            node("Gather", "table input_ids", "rows"),
            node("Cast", "rows", "x", to=TensorProto.FLOAT),
        ],
        table=TABLE.astype(np.float64),
    ),
    "a depth and a factor that are computed": Form(
        [
            node("Shape", "table", "dimensions", start=1),
            node("Cast", "dimensions", "width", to=TensorProto.FLOAT),
            node("Sqrt", "width", "root"),
            node("Div", "table root", "scaled"),
            *head("scaled"),
        ],
        {"values": np.float32([0, 1])},
        [node("Shape", "table", "depth", start=0, end=1), *ONE_HOT],
    ),
    "a convolution": Form(
        [
            node("Unsqueeze", "table last", "kernel"),
            node("Transpose", "h", "channels", perm=[0, 2, 1]),
            node("Conv", "channels kernel offsets", "scores"),
            node("Transpose", "scores", "logits", perm=[0, 2, 1]),
        ],
        {"last": ints(-1), "offsets": ROW_FACTORS[:, 0]},
    ),
    "Attention before the head": Form(
        [
            node(
                "Attention", "h packed", "mixed", domain="com.microsoft", num_heads=4,
                qkv_hidden_sizes=[16, 16, WIDTH],
            ),
            *head()[:1],
            node("MatMul", "mixed transposed", "logits"),
        ],
        {"packed": np.concatenate([LAYER, LAYER], axis=1)[:, : 32 + WIDTH] * 2},
    ),
    "GatherND": Form(
        head(),
        {"last": ints(-1)},
        [node("Unsqueeze", "input_ids last", "places"), node("GatherND", "table places", "x")],
    ),
    "float16": Form(
        [node("Cast", "table", "wide", to=TensorProto.FLOAT), *head("wide")],
        lookup=[
            node("Cast", "table", "wide2", to=TensorProto.FLOAT),
            node("Gather", "wide2 input_ids", "x"),
        ],
        table=HALF,
    ),
    "float16 looked up": Form(
        [node("Cast", "table", "wide", to=TensorProto.FLOAT), *head("wide")],
        lookup=[
            node("Gather", "table input_ids", "rows"),
            node("Cast", "rows", "x", to=TensorProto.FLOAT),
        ],
        table=HALF,
    ),
    "float16 multiplied": Form(
        [
            node("Cast", "h", "narrow", to=TensorProto.FLOAT16),
            node("Transpose", "table", "transposed", perm=[1, 0]),
            node("MatMul", "narrow transposed", "product"),
            node("Cast", "product", "logits", to=TensorProto.FLOAT),
        ],
        lookup=[
            node("Gather", "table input_ids", "rows"),
            node("Cast", "rows", "x", to=TensorProto.FLOAT),
        ],
        table=HALF,
    ),
    "bfloat16": Form(
        [node("Cast", "table", "wide", to=TensorProto.FLOAT), *head("wide")],
        lookup=[
            node("Cast", "table", "wide2", to=TensorProto.FLOAT),
            node("Gather", "wide2 input_ids", "x"),
        ],
        table=BFLOAT,
    ),
    "one-hot vectors": Form(
        head(), {"depth": np.array(ROWS), "values": np.float32([0, 1])}, ONE_HOT
    ),
    "one-hot vectors by comparison": Form(
        head(), {"last": ints(-1), "range": np.arange(ROWS)}, EQUAL
    ),
    "EmbedLayerNormalization": Form(
        head(),
        EMBED_CONSTANTS,
        [
            node("Cast", "input_ids", "ids32", to=TensorProto.INT32),
            node("Mul", "ids32 nothing", "segments"), EMBED,
        ],
    ),
    "Gemm with factors": Form(
        [
            node("Reshape", "h flat", "f"),
            node("Gemm", "f table offsets", "g", transB=1, alpha=0.5, beta=2.0),
            node("Shape", "input_ids", "sizes"),
            node("Concat", "sizes count", "whole", axis=0),
            node("Reshape", "g whole", "logits"),
        ],
        {"flat": ints(-1, WIDTH), "count": ints(ROWS), "offsets": ROW_FACTORS[:, 0]},
    ),
    "Gemm of a scaled table": Form(
        [
            node("Mul", "table factor", "scaled"),
            node("Reshape", "h flat", "f"),
            node("Gemm", "f scaled", "g", transB=1),
            node("Shape", "input_ids", "sizes"),
            node("Concat", "sizes count", "whole", axis=0),
            node("Reshape", "g whole", "logits"),
        ],
        {"flat": ints(-1, WIDTH), "count": ints(ROWS), "factor": COLUMN_FACTORS},
    ),
    "FusedMatMul": Form(
        [node("FusedMatMul", "h table", "logits", domain="com.microsoft", transB=1, alpha=0.5)]
    ),
    "a low-rank update": Form(
        [node("MatMul", "a b", "delta"), node("Add", "table delta", "sum"), *head("sum")],
        {"a": LOW_RANK, "b": LOW_RANK_COLUMNS},
    ),
    "a low-rank update at both uses": Form(
        [node("MatMul", "a b", "delta"), node("Add", "table delta", "sum"), *head("sum")],
        {"a": LOW_RANK, "b": LOW_RANK_COLUMNS, "half": np.float32(0.5)},
        [
            node("MatMul", "a b", "delta2"),
            node("Mul", "delta2 half", "delta3"),
            node("Add", "table delta3", "sum2"),
            node("Gather", "sum2 input_ids", "x"),
        ],
    ),
    "a low-rank update, transposed": Form(
        head(),
        {"a": np.ascontiguousarray(LOW_RANK.T), "b": np.ascontiguousarray(LOW_RANK_COLUMNS.T)},
        [
            node("MatMul", "b a", "delta"),
            node("Transpose", "delta", "delta2", perm=[1, 0]),
            node("Add", "table delta2", "sum"),
            node("Gather", "sum input_ids", "x"),
        ],
    ),
    "a projection of the rows": Form(
        [node("MatMul", "table layer2", "projected"), *head("projected")], {"layer2": LAYER * 8}
    ),
    "stored transposed": Form(
        [node("MatMul", "h table", "logits")],
        lookup=[
            node("Transpose", "table", "rows", perm=[1, 0]),
            node("Gather", "rows input_ids", "x"),
        ],
        table=np.ascontiguousarray(TABLE.T),
    ),
    "columns looked up": Form(
        [node("MatMul", "h table", "logits")],
        lookup=[
            node("Gather", "table input_ids", "columns", axis=1),
            node("Transpose", "columns", "x", perm=[1, 2, 0]),
        ],
        table=np.ascontiguousarray(TABLE.T),
    ),
    "a weight norm": Form(
        [
            node("ReduceSum", "squares one", "sums", keepdims=1),
            node("Sqrt", "sums", "norms"),
            node("Div", "gains norms", "factors"),
            node("Mul", "table factors", "rows"),
            *head("rows"),
        ],
        {"gains": ROW_FACTORS, "one": ints(1)},
        [node("Mul", "table table", "squares"), node("Gather", "table input_ids", "x")],
    ),
    "on the left": Form(
        [
            node("Mul", "table factor", "scaled"),
            node("Transpose", "h", "columns", perm=[0, 2, 1]),
            node("MatMul", "scaled columns", "product"),
            node("Transpose", "product", "logits", perm=[0, 2, 1]),
        ],
        {"factor": ROW_FACTORS},
    ),
    "with another axis": Form(
        [
            node("Unsqueeze", "table zero", "batch"),
            node("Mul", "batch factor", "scaled"),
            node("Transpose", "scaled", "transposed", perm=[0, 2, 1]),
            node("MatMul", "h transposed", "logits"),
        ],
        {"zero": ints(0), "factor": ROW_FACTORS},
    ),
}  # fmt: skip
"""Tables whose operators move, by what stands between the table and a use."""


def einsum(equation: str, *, x: str = "h", extra: dict[str, Any] | None = None) -> Form:
    """The head is an Einsum; ``x`` names its operands."""
    names = " ".join([x, *(extra or {})])
    return Form([node("Einsum", names, "logits", equation=equation)], extra or {})


EINSUMS = {
    "bsh,vh->bsv": einsum("bsh,vh->bsv", x="h table"),
    "vh,bsh->bsv": einsum("vh, bsh -> bsv", x="table h"),
    "...h,vh->...v": einsum("...h,vh->...v", x="h table"),
    "...j,ij": einsum("...j,ij", x="h table"),
    "bsh,vh,v->bsv": einsum("bsh,vh,v->bsv", x="h table", extra={"factor": ROW_FACTORS[:, 0]}),
    "bsh,vh,h->bsv": einsum("bsh,vh,h->bsv", x="h table", extra={"factor": COLUMN_FACTORS}),
    "hbs,vh->bsv": Form(
        [
            node("Transpose", "h", "moved", perm=[2, 0, 1]),
            node("Einsum", "moved table", "logits", equation="hbs,vh->bsv"),
        ]
    ),
    "bsh,vh->vbs": Form(
        [
            node("Einsum", "h table", "swapped", equation="bsh,vh->vbs"),
            node("Transpose", "swapped", "logits", perm=[1, 2, 0]),
        ]
    ),
    "bsnd,vnd->bsv": Form(
        [
            node("Reshape", "h split", "heads"),
            node("Reshape", "table parts", "table3"),
            node("Einsum", "heads table3", "logits", equation="bsnd,vnd->bsv"),
        ],
        {"split": ints(0, 0, 4, 16), "parts": ints(ROWS, 4, 16)},
    ),
    "bsnd,vnd->bsv of a table of three axes": Form(
        [
            node("Reshape", "h split", "heads"),
            node("Einsum", "heads table", "logits", equation="bsnd,vnd->bsv"),
        ],
        {"split": ints(0, 0, 4, 16), "whole": ints(0, 0, WIDTH)},
        [node("Gather", "table input_ids", "rows"), node("Reshape", "rows whole", "x")],
        table=TABLE.reshape(ROWS, 4, 16),
    ),
    "bsv,vh->bsh": Form(
        head(),
        {"depth": np.array(ROWS), "values": np.float32([0, 1])},
        [ONE_HOT[0], node("Einsum", "vectors table", "x", equation="bsv,vh->bsh")],
    ),
}
"""Look-ups and products that are an Einsum, by its equation."""

SHIFTED = RANDOM.permutation(ROWS)
DEQUANTIZED = {
    "Tanh": Form([node("Tanh", "table", "bounded"), *head("bounded")]),
    "a mixture of rows": Form(
        [
            node("Transpose", "table", "transposed", perm=[1, 0]),
            node("MatMul", "h transposed", "scores"),
            node("Softmax", "scores", "shares", axis=-1),
            node("MatMul", "shares table", "mixed"),
            node("Add", "h mixed", "sum"),
            node("MatMul", "sum transposed", "logits"),
        ]
    ),
    "products by heads": Form(
        [
            node("Reshape", "table halves", "parts"),
            node("Transpose", "parts", "heads", perm=[1, 2, 0]),
            node("Reshape", "h split", "h4"),
            node("Transpose", "h4", "h5", perm=[0, 2, 1, 3]),
            node("MatMul", "h5 heads", "scores"),
            node("ReduceSum", "scores one", "logits", keepdims=0),
        ],
        {"halves": ints(ROWS, 2, 32), "split": ints(0, 0, 2, 32), "one": ints(1)},
    ),
    "a sum of two tables": Form(
        [
            node("Mul", "table table", "squares"),
            *head("squares"),
        ]
    ),
}  # fmt: skip
"""Tables with an operator that cannot move, at one use."""


def choosing(then: Nodes, otherwise: Nodes, **constants: Any) -> Form:
    """An If chooses between two heads, by the largest id of a run."""
    graphs = [
        helper.make_graph(
            nodes, name, [],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        )
        for name, nodes in (("then", then), ("otherwise", otherwise))
    ]  # fmt: skip
    nodes = [
        node("ReduceMax", "input_ids", "largest", keepdims=0),
        node("Greater", "largest hundred", "flag"),
        node("If", "flag", "logits", then_branch=graphs[0], else_branch=graphs[1]),
    ]
    return Form(nodes, {"hundred": np.array(100)} | constants)


def branch_head(table: str, suffix: str) -> Nodes:
    return [
        node("Transpose", table, f"transposed{suffix}", perm=[1, 0]),
        node("MatMul", f"h transposed{suffix}", f"logits{suffix}"),
    ]


BRANCHES = {
    "factors": choosing(
        [node("Mul", "table rows", "scaled1"), *branch_head("scaled1", "1")],
        [node("Div", "table columns", "scaled2"), *branch_head("scaled2", "2")],
        rows=ROW_FACTORS, columns=COLUMN_FACTORS,
    ),
    "a normalization": choosing(
        [
            node("ReduceL2", "table", "norms", axes=[1], keepdims=1),
            node("Div", "table norms", "scaled1"),
            *branch_head("scaled1", "1"),
        ],
        branch_head("table", "2"),
    ),
    "a copy in a constant": choosing(
        [
            node("Constant", "", "own", value=numpy_helper.from_array(TABLE.T.copy())),
            node("MatMul", "h own", "logits1"),
        ],
        branch_head("table", "2"),
    ),
}  # fmt: skip
"""Uses in the branches of an If."""
