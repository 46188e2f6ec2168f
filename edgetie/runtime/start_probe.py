"""Check that a provider starts: ``python -m edgetie.runtime.start_probe`` runs a small model on it.

What onnxruntime lists it was built with; drivers and libraries may still be missing.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

from edgetie.providers.json_worker import reply
from edgetie.runtime.session import open_session


def start_provider(request: dict[str, Any]) -> dict[str, Any]:
    """Open the ``model`` of a request, base64, on its ``provider``; count nodes per provider."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(base64.b64decode(request["model"]))
        session = open_session(path, provider=request["provider"])
        return {"nodes": session.nodes_per_provider}


if __name__ == "__main__":
    reply(start_provider)
