"""Nodes that the provider takes run as few programs, whatever lies between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_models import MICROSOFT, nodes_taken, open_session
from onnx import TensorProto, helper, numpy_helper

from edgetie.quantize.preprocess.rotate import hadamard

CHANNELS = 64
TAKEN = {"norm": 1, "skip": 1, "product": 1, "gate": 4, "rotation": 4}
"""Nodes that each kind of part adds."""
FOREIGN = ("Tanh", "Add")


class RandomGraph:
    """Parts that read random values before them; every value is (batch, sequence, CHANNELS)."""

    def __init__(self, seed: int, parts: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values = ["x", "y"]
        self.taken = 0
        for _ in range(parts):
            kind = str(self.random.choice([*TAKEN, *FOREIGN]))
            self.taken += TAKEN.get(kind, 0)
            getattr(self, f"_{kind.lower()}")()

    def _read(self) -> str:
        return str(self.random.choice(self.values[-6:]))

    def _constant(self, array: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def _node(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def _gain(self) -> str:
        return self._constant(self.random.random(CHANNELS).astype(np.float32) + 0.5)

    def _norm(self) -> None:
        self.values += self._node("RMSNormalization", [self._read(), self._gain()], axis=-1)

    def _skip(self) -> None:
        inputs = [self._read(), self._read(), self._gain()]
        output, _, _, total = self._node(
            "SkipSimplifiedLayerNormalization", inputs, 4, domain=MICROSOFT
        )
        self.values += [total, output]

    def _multiply(self, rows: int) -> list[str]:
        bits = int(self.random.choice([4, 8]))
        weights = [
            self._read(),
            self._constant(self.random.integers(0, 256, (rows, 2, 32 * bits // 8), np.uint8)),
            self._constant(self.random.random((rows, 2)).astype(np.float32) / (2**bits * 3)),
        ]
        return self._node(
            "MatMulNBits", weights, domain=MICROSOFT, K=CHANNELS, N=rows, bits=bits, block_size=32
        )

    def _product(self) -> None:
        self.values += self._multiply(CHANNELS)

    def _gate(self) -> None:
        first, second = self._node("Split", self._multiply(2 * CHANNELS), 2, axis=-1, num_outputs=2)
        (active,) = self._node("QuickGelu", [first], domain=MICROSOFT)
        self.values += self._node("Mul", [active, second])

    def _rotation(self) -> None:
        # of a value that no other rotation reads: ONNX Runtime joins equal and adjacent Reshapes
        (value,) = self._node("RMSNormalization", [self._read(), self._gain()], axis=-1)
        (apart,) = self._node("Reshape", [value, self._constant([0, 0, 2, 32])])
        (turned,) = self._node("MatMul", [apart, self._constant(hadamard(32).astype(np.float32))])
        self.values += self._node("Reshape", [turned, self._constant([0, 0, CHANNELS])])

    def _tanh(self) -> None:
        self.values += self._node("Tanh", [self._read()])

    def _add(self) -> None:
        self.values += self._node("Add", [self._read(), self._read()])

    def model(self) -> bytes:
        """Return the model; its outputs are what no node reads, and random values."""
        read = {name for node in self.nodes for name in node.input}
        chosen = {*self.values[2:]} - read | {*self.random.choice(self.values[2:], 3)}
        shape = ["batch", "sequence", CHANNELS]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"],
            [helper.make_tensor_value_info(v, TensorProto.FLOAT, shape) for v in sorted(chosen)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        data: bytes = model.SerializeToString()
        return data


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_equal_onnx_runtimes(seed: int) -> None:
    graph = RandomGraph(seed, parts=4 + seed)
    model = graph.model()
    session = open_session(model, threads=1 + seed % 3)
    reference = open_session(model, plugin=False)
    assert nodes_taken(session) == graph.taken
    for batch, sequence in ((1, 1), (2, 3), (1, 40), (0, 2)):
        feeds = {
            name: graph.random.standard_normal((batch, sequence, CHANNELS)).astype(np.float32)
            for name in "xy"
        }
        for _ in range(2):  # the second run finds the constants where the first has read them
            results = zip(session.run(None, feeds), reference.run(None, feeds), strict=True)
            for result, expected in results:
                scale = np.abs(expected).max(initial=1)
                np.testing.assert_allclose(result, expected, rtol=0, atol=2e-3 * scale)


def test_a_chain_is_one_program() -> None:
    graph = RandomGraph(0, parts=0)
    for part in ("norm", "product", "rotation", "gate", "skip", "product"):
        getattr(graph, f"_{part}")()
    session = open_session(graph.model())
    (program,) = session.get_provider_graph_assignment_info()
    assert len(program.get_nodes()) == len(graph.nodes)
