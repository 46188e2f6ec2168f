"""Execution providers as data: what each is called, needs, takes, and what can be said of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetie.errors import ProviderError


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime, on one kind of machine.

    Attributes:
        name: edgetie's short name, as in ``--provider cpu``.
        ort_name: ONNX Runtime's name; empty where Python cannot have it.
        package: what to install to have it.
        machines: where it runs.
        target: row of :data:`edgetie.targets.TARGETS` whose scheme suits it.
        latency: whether a latency measured there means anything, and where it does not.
        device: device on which its inputs and outputs are bound, as IOBinding names it.
        options: options it is created with.
        environment: the environment of its own that it can be had in besides this one
            (:data:`edgetie.providers.environments.RECIPES`).
        flags: what that environment's command is told.
        inside: the row that stands for it there; empty if that is itself.
        plugin: the module whose library holds the provider, where onnxruntime's own does not.
        fixed_shapes: whether it takes nodes of fixed shapes only.
        half: whether it computes with 16 bits what is stored with 32.
        contexts: whether what it compiles can be kept (:mod:`edgetie.npu.compile`).
    """

    name: str
    ort_name: str
    package: str
    machines: str
    target: str
    latency: str = "measured"
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    environment: str = ""
    flags: tuple[str, ...] = ()
    inside: str = ""
    plugin: str = ""
    fixed_shapes: bool = False
    half: bool = False
    contexts: bool = False


_ANDROID = "the onnxruntime-android library"
_EMULATED = "emulated: not measured"


def _arm(name: str, core: str, has: str) -> Provider:
    """The CPU provider on an emulated core."""
    return Provider(
        name,
        "CPUExecutionProvider",
        "onnxruntime for aarch64",
        f"ARM64, emulated {core}: {has}",
        "mobile-cpu",
        _EMULATED,
        environment="arm64",
        flags=("-cpu", core),
        inside="cpu",
    )


PROVIDERS = {
    row.name: row
    for row in (
        Provider("cpu", "CPUExecutionProvider", "onnxruntime", "every machine", "cpu"),
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            "onnxruntime-gpu",
            "NVIDIA GPUs",
            "cuda",
            device="cuda",
            environment="cuda",
        ),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            "onnxruntime-openvino",
            "Intel CPUs, GPUs and NPUs; here the CPU",
            "openvino",
            options={"device_type": "CPU"},
            environment="openvino",
        ),
        Provider(
            "qnn",
            "QNNExecutionProvider",
            "onnxruntime-qnn",
            "Snapdragon NPUs (HTP)",
            "mobile-npu",
            "on x86-64 a simulator: not measured",
            options={"backend_type": "htp", "soc_model": "57", "htp_performance_mode": "burst"},
            environment="qnn",
            plugin="onnxruntime_qnn",
            fixed_shapes=True,
            half=True,
            contexts=True,
        ),
        Provider(
            "coreml",
            "CoreMLExecutionProvider",
            "the onnxruntime wheel for macOS",
            "Apple's CPUs, GPUs and neural engines",
            "mobile-cpu",
            options={"ModelFormat": "MLProgram"},
        ),
        Provider("xnnpack", "XnnpackExecutionProvider", _ANDROID, "ARM CPUs", "mobile-cpu"),
        Provider("nnapi", "NnapiExecutionProvider", _ANDROID, "Android's drivers", "mobile-cpu"),
        Provider(
            "webgpu", "WebGpuExecutionProvider", "onnxruntime-webgpu", "GPUs, natively", "webgpu"
        ),
        Provider("wasm", "", "onnxruntime-web, see edgetie deploy --for web", "browsers", "web"),
        _arm("arm64-a53", "cortex-a53", "plain NEON"),
        _arm("arm64-a76", "cortex-a76", "dot products"),
        _arm("arm64-n2", "neoverse-n2", "int8 matrix products"),
    )
}
"""The table of providers by short name. Placement is proven alike on all: by the assignment of each
node that ONNX Runtime records when it starts a session."""


def find(name: str) -> Provider:
    """The row called ``name``.

    Raises:
        ProviderError: if there is none.
    """
    row = PROVIDERS.get(name.lower())
    if row is None:
        raise ProviderError(f"--provider {name}: unknown; known are {', '.join(PROVIDERS)}")
    return row


def missing(row: Provider) -> str | None:
    """Why the onnxruntime of this process cannot run ``row``; ``None`` if it has it.

    What onnxruntime lists may still fail to start: only a session proves it.
    """
    if not row.ort_name:
        return f"not for Python: it comes with {row.package}"
    if row.inside:
        return f"runs in an environment of its own; make it: edgetie providers --install {row.name}"
    import onnxruntime

    if row.plugin and importlib.util.find_spec(row.plugin) is not None:
        return None
    available = onnxruntime.get_available_providers()
    if row.ort_name in available:
        return None
    here = [other.name for other in PROVIDERS.values() if other.ort_name in available]
    has = ", ".join(dict.fromkeys(name for name in here if not PROVIDERS[name].inside))
    how = f"; or: edgetie providers --install {row.name}" if row.environment else ""
    return (
        f"not in the installed onnxruntime {onnxruntime.__version__} (it has {has}); "
        f"it comes with {row.package}{how}"
    )


def add_plugin(row: Provider, options: Any) -> None:
    """Have a session use a provider that comes in a library of its own.

    Raises:
        ProviderError: if the library does not load, or finds no device.
    """
    import onnxruntime

    module = importlib.import_module(row.plugin)
    if not any(device.ep_name == row.ort_name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(row.ort_name, module.get_library_path())
    devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == row.ort_name]
    if not devices:
        raise ProviderError(f"--provider {row.name}: {row.package} finds no device here")
    options.add_provider_for_devices(devices[:1], dict(row.options))


def resolve(name: str) -> Provider:
    """The provider called ``name``, if this process's onnxruntime has it.

    Raises:
        ProviderError: if there is no such provider, or the installed onnxruntime lacks it.
    """
    row = find(name)
    why = missing(row)
    if why is not None:
        if row.environment:
            why += ", and check, bench and compile run there; this does not"
        raise ProviderError(f"--provider {row.name}: {why}")
    return row
