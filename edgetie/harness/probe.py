"""Whether a provider starts: ``python -m edgetie.harness.probe`` opens a small model on it.

What onnxruntime lists it was built with; drivers and libraries may still be missing.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path

from edgetie.errors import EdgetieError
from edgetie.harness.answers import answer_stream
from edgetie.runtime.session import open_session


def _main() -> None:
    result = answer_stream()
    request = json.load(sys.stdin)
    answer: dict[str, object]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(base64.b64decode(request["model"]))
        try:
            session = open_session(path, provider=request["provider"])
            answer = {"nodes": session.nodes_per_provider}
        except EdgetieError as error:
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    with result:
        json.dump(answer, result)


if __name__ == "__main__":
    _main()
