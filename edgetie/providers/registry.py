"""The table of execution providers."""

import importlib.util
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetie.errors import ProviderError, summarize

AUTO = "auto"
"""Name that stands for edgetie's own provider if it is here and takes nodes of the model, and for
``cpu`` otherwise."""

OWN = "edgetie"
"""Name of edgetie's own provider, which by design leaves nodes to ONNX Runtime's on the CPU."""

logger = logging.getLogger(__name__)
_registering = threading.Lock()


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime on one kind of machine.

    Attributes:
        name: short name in edgetie, such as ``cpu``.
        ort_name: name in ONNX Runtime; empty if Python cannot use it.
        package: package that contains it.
        machines: hardware that it runs on.
        target: row of :data:`edgetie.targets.TARGETS` whose scheme suits it.
        latency: ``measured``, or why latencies on it are not valid.
        device: device of its inputs and outputs, as IOBinding names it.
        options: options to create it with.
        environment: name of the environment that can be installed for it, in ``RECIPES``.
        worker_name: name of the provider in that environment, if it is another one.
        plugin: module whose library contains it, if onnxruntime itself does not. Its function
            ``explain_absence()``, if it has one, says why it cannot be used here.
        fixed_shapes: whether it runs nodes with fixed shapes only.
        half: whether it computes float32 tensors in float16.
        contexts: whether compiled graphs can be saved (:mod:`edgetie.npu.compile`).
        driver: library of the hardware's driver, without which it cannot start; empty if it needs
            none.
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
    worker_name: str = ""
    plugin: str = ""
    fixed_shapes: bool = False
    half: bool = False
    contexts: bool = False
    driver: str = ""

    def error(self, message: str) -> ProviderError:
        """Make an error about this provider, to be raised."""
        return ProviderError(message, parameter="provider", value=self.name)


_ANDROID = "onnxruntime-android"

PROVIDERS = {
    row.name: row
    for row in (
        Provider("cpu", "CPUExecutionProvider", "onnxruntime", "any machine", "cpu"),
        Provider(
            OWN, "EdgetieExecutionProvider", "edgetie", "x86-64 and ARM64 CPUs", "cpu",
            plugin="edgetie.kernels",
        ),
        Provider(
            "cuda", "CUDAExecutionProvider", "onnxruntime-gpu", "NVIDIA GPUs", "cuda",
            device="cuda", environment="cuda", driver="cuda",
        ),
        Provider(
            "openvino", "OpenVINOExecutionProvider", "onnxruntime-openvino", "Intel CPUs",
            "openvino", options={"device_type": "CPU"}, environment="openvino",
        ),
        Provider(
            "qnn", "QNNExecutionProvider", "onnxruntime-qnn", "Snapdragon NPUs", "mobile-npu",
            "on x86-64 a simulator: not measured",
            options={"backend_type": "htp", "soc_model": "57", "htp_performance_mode": "burst"},
            environment="qnn", plugin="onnxruntime_qnn",
            fixed_shapes=True, half=True, contexts=True,
        ),
        Provider(
            "coreml", "CoreMLExecutionProvider", "onnxruntime (macOS)", "Apple hardware",
            "mobile-cpu", options={"ModelFormat": "MLProgram"},
        ),
        Provider("xnnpack", "XnnpackExecutionProvider", _ANDROID, "ARM CPUs", "mobile-cpu"),
        Provider("nnapi", "NnapiExecutionProvider", _ANDROID, "Android drivers", "mobile-cpu"),
        Provider("webgpu", "WebGpuExecutionProvider", "onnxruntime-webgpu", "GPUs", "webgpu"),
        Provider("wasm", "", "onnxruntime-web, see edgetie deploy", "browsers", "web"),
    )
}  # fmt: skip
"""Providers by short name. Placement is checked the same way for all of them: with the assignment
of each node, which ONNX Runtime records when a session starts."""


def find_provider(name: str) -> Provider:
    """Find a provider by its short name. ``auto`` is edgetie's own if it is here, else ``cpu``.

    Raises:
        ProviderError: if there is none.
    """
    if name.lower() == AUTO:
        return PROVIDERS["cpu" if explain_absence(PROVIDERS[OWN]) else OWN]
    row = PROVIDERS.get(name.lower())
    if row is None:
        names = ", ".join([AUTO, *PROVIDERS])
        raise ProviderError(f"unknown; known are {names}", parameter="provider", value=name)
    return row


def explain_absence(row: Provider) -> str | None:
    """Explain why the onnxruntime of this process lacks a provider; ``None`` if it has it.

    A provider that onnxruntime lists may still fail to start. Only a session proves that it works.
    """
    if not row.ort_name:
        return f"not for Python: it comes with {row.package}"
    if row.worker_name:
        return "runs in a separate environment only; install it"
    import onnxruntime

    if row.plugin and importlib.util.find_spec(row.plugin) is not None:
        explain = getattr(importlib.import_module(row.plugin), "explain_absence", lambda: None)
        reason: str | None = explain()
        return reason
    available = onnxruntime.get_available_providers()
    if row.ort_name in available:
        return None
    rows = [each for each in PROVIDERS.values() if not each.worker_name]
    has = ", ".join(each.name for each in rows if each.ort_name in available)
    how = f", or edgetie providers --install {row.name} makes an environment for it"
    return (
        f"not in the installed onnxruntime {onnxruntime.__version__} (it has {has}); "
        f"it comes with {row.package}{how if row.environment else ''}"
    )


def require_provider(name: str) -> Provider:
    """Find a provider that the onnxruntime of this process has. ``auto`` is one that loads.

    Raises:
        ProviderError: if there is no such provider, or this onnxruntime lacks it.
    """
    row = find_provider(name)
    reason = explain_absence(row)
    if reason is not None:
        if row.environment:
            reason += ", where check, bench and compile run; this does not"
        raise row.error(reason)
    if name.lower() == AUTO and row.plugin:
        try:
            register_plugin(row)
        except ProviderError as error:
            logger.warning("%s; cpu runs instead", error)
            return PROVIDERS["cpu"]
    return row


def register_plugin(row: Provider) -> list[Any]:
    """Load a provider's library, once in a process; returns its devices.

    Raises:
        ProviderError: if the library does not load, or has no device on this machine.
    """
    import onnxruntime

    def find_devices() -> list[Any]:
        return [each for each in onnxruntime.get_ep_devices() if each.ep_name == row.ort_name]

    with _registering:
        devices = find_devices()
        if not devices:
            path = importlib.import_module(row.plugin).get_library_path()
            try:
                onnxruntime.register_execution_provider_library(row.ort_name, path)
            except Exception as error:  # pybind11 classes without a common base
                raise row.error(f"{path} does not load: {summarize(error)}") from error
            devices = find_devices()
    if not devices:
        raise row.error(f"{row.package} finds no device on this machine")
    return devices
