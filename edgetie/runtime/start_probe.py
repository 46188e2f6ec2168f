"""Check that a provider starts: ``python -m edgetie.runtime.start_probe`` opens a model on it."""

import tempfile
from pathlib import Path
from typing import Any

from edgetie.providers.json_worker import reply
from edgetie.providers.registry import OWN
from edgetie.runtime.session import open_session

_MATMUL = """
<ir_version: 8, opset_import: ["" : 17]>
probe (float[1,16] x) => (float[1,1] y) <float[16,1] weight = {%s}> { y = MatMul(x, weight) }
"""
_MATMUL_NBITS = """
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
probe (float[1,16] x) => (float[1,1] y)
<uint8[1,1,16] weight = {%s}, float[1] scale = {1}>
{ y = com.microsoft.MatMulNBits<K = 16, N = 1, bits = 8, block_size = 16>(x, weight, scale) }
"""


def start_provider(request: dict[str, Any]) -> dict[str, Any]:
    """Open a model of one product on the request's ``provider``; count nodes by provider."""
    import onnx

    text = _MATMUL_NBITS if request["provider"] == OWN else _MATMUL
    model = onnx.parser.parse_model(text % ", ".join(["1"] * 16))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, str(path))
        return {"nodes": open_session(path, provider=request["provider"]).nodes_per_provider}


if __name__ == "__main__":
    reply(start_provider)
