"""Small ONNX files whose shared weights are stored twice, as tools leave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS, WIDTH = 300, 48


IDS = np.array([[5, 7, 299, 0]])


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32)


def save(
    path: Path, nodes: list[onnx.NodeProto], values: dict[str, np.ndarray], *,
    external: bool = False, kind: int = TensorProto.FLOAT,
) -> Path:  # fmt: skip
    """A graph ``input_ids -> logits`` over some initializers."""
    graph = helper.make_graph(
        nodes,
        "broken",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.weights")
    return path


def copies(path: Path, size: int = ROWS * WIDTH) -> int:
    """Byte ranges, or tensors in the model file, of so many elements."""
    model = onnx.load(path, load_external_data=False)
    graphs, places = [model.graph], set()
    for graph in graphs:
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        for tensor in graph.initializer:
            if int(np.prod(tensor.dims)) == size:
                info = {entry.key: entry.value for entry in tensor.external_data}
                places.add(info.get("offset", tensor.name))
    return len(places)


def logits(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {value.name: IDS for value in session.get_inputs()}
    return session.run(["logits"], feeds)[0]


LOOKUP = helper.make_node("Gather", ["table", "input_ids"], ["x"])


def broken(path: Path, variant: str) -> Path:
    """A tied model as one tool or another leaves it."""
    w = table()
    values = {"table": w}
    if variant == "folded Transpose":
        values["head"] = np.ascontiguousarray(w.T)
        nodes = [LOOKUP, helper.make_node("MatMul", ["x", "head"], ["logits"])]
    elif variant == "duplicate":
        values["head"] = w.copy()
        nodes = [
            LOOKUP,
            helper.make_node("Transpose", ["head"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["logits"]),
        ]
    elif variant in ("Gemm", "Gemm transB"):
        transposed = variant == "Gemm transB"
        values |= {"head": w.copy() if transposed else np.ascontiguousarray(w.T)}
        values |= {"flat": np.array([-1, WIDTH])}
        nodes = [
            LOOKUP,
            helper.make_node("Reshape", ["x", "flat"], ["f"]),
            helper.make_node("Gemm", ["f", "head"], ["logits"], transB=int(transposed)),
        ]
    elif variant == "Constant":
        constant = numpy_helper.from_array(np.ascontiguousarray(w.T), "value")
        nodes = [
            LOOKUP,
            helper.make_node("Constant", [], ["head"], value=constant),
            helper.make_node("MatMul", ["x", "head"], ["logits"]),
        ]
    elif variant == "other shape":
        values["head"] = w.reshape(ROWS, 3, WIDTH // 3)
        values |= {"flat": np.array([ROWS, WIDTH])}
        nodes = [
            LOOKUP,
            helper.make_node("Reshape", ["head", "flat"], ["h"]),
            helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["logits"]),
        ]
    else:
        assert variant == "subgraphs"
        branches = {}
        for name in ("then", "else"):
            head = numpy_helper.from_array(np.ascontiguousarray(w.T), f"{name}_head")
            result = helper.make_node("MatMul", ["x", f"{name}_head"], [f"{name}_logits"])
            output = helper.make_tensor_value_info(f"{name}_logits", TensorProto.FLOAT, None)
            branches[f"{name}_branch"] = helper.make_graph([result], name, [], [output], [head])
        values |= {"yes": np.array(True)}
        nodes = [LOOKUP, helper.make_node("If", ["yes"], ["logits"], **branches)]
    return save(path, nodes, values)


VARIANTS = [
    "folded Transpose", "duplicate", "Gemm", "Gemm transB", "Constant", "other shape", "subgraphs",
]  # fmt: skip
