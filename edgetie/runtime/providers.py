"""Execution providers as data: what each is called, needs and where its buffers live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgetie.errors import ProviderError


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime.

    Attributes:
        name: edgetie's short name, as in ``--provider cpu``.
        ort_name: ONNX Runtime's name.
        package: what to install to have it.
        device: device on which its inputs and outputs are bound, as IOBinding names it.
        options: options it is created with.
    """

    name: str
    ort_name: str
    package: str
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)


_APPLE = "the onnxruntime wheel for macOS"
_ANDROID = "the onnxruntime-android library"

PROVIDERS = {
    row.name: row
    for row in (
        Provider("cpu", "CPUExecutionProvider", "onnxruntime"),
        Provider("cuda", "CUDAExecutionProvider", "onnxruntime-gpu", "cuda"),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            "onnxruntime-openvino",
            options={"device_type": "CPU"},
        ),
        Provider(
            "qnn",
            "QNNExecutionProvider",
            "onnxruntime-qnn",
            options={"backend_type": "htp", "htp_performance_mode": "burst"},
        ),
        Provider("coreml", "CoreMLExecutionProvider", _APPLE, options={"ModelFormat": "MLProgram"}),
        Provider("xnnpack", "XnnpackExecutionProvider", _ANDROID),
        Provider("nnapi", "NnapiExecutionProvider", _ANDROID),
        Provider("webgpu", "WebGpuExecutionProvider", "onnxruntime-webgpu"),
    )
}
"""The table of providers by short name."""


def resolve(name: str) -> Provider:
    """The provider called ``name``, if this ONNX Runtime has it.

    Raises:
        ProviderError: if there is no such provider, or the installed onnxruntime lacks it.
    """
    row = PROVIDERS.get(name.lower())
    if row is None:
        raise ProviderError(f"--provider {name}: unknown; known are {', '.join(PROVIDERS)}")
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if row.ort_name not in available:
        here = [other.name for other in PROVIDERS.values() if other.ort_name in available]
        raise ProviderError(
            f"--provider {row.name}: not in the installed onnxruntime "
            f"{onnxruntime.__version__} (it has {', '.join(here)}); it comes with {row.package}"
        )
    return row
