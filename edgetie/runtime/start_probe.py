"""Check that a provider starts: ``python -m edgetie.runtime.start_probe`` runs a MatMul on it."""

import tempfile
from pathlib import Path
from typing import Any

from edgetie.providers.json_worker import reply
from edgetie.runtime.session import open_session

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
probe (float[1,16] x) => (float[1,16] y) <float[16,16] weight = {%s}> { y = MatMul(x, weight) }
"""


def start_provider(request: dict[str, Any]) -> dict[str, Any]:
    """Open a model of one MatMul on the request's ``provider``; count nodes by provider."""
    import onnx

    model = onnx.parser.parse_model(_MODEL % ", ".join(["0.5"] * 256))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, str(path))
        return {"nodes": open_session(path, provider=request["provider"]).nodes_per_provider}


if __name__ == "__main__":
    reply(start_provider)
