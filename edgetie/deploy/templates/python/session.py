"""Open a graph with ONNX Runtime, on edgetie's execution provider where it can run it."""

import ctypes
import mmap
from pathlib import Path
from typing import Any

import onnxruntime as ort

PROVIDER = "EdgetieExecutionProvider"


def open_session(folder: Path, app: dict[str, Any], graph: str) -> tuple[ort.InferenceSession, str]:
    """Open a graph of the model; returns it, and which provider runs it."""
    options = ort.SessionOptions()
    options.enable_mem_pattern = False  # it would store one for every length
    # exact sums of uint8 times int8 also on x86 processors without VNNI
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # an error is raised
    if app["ort_format"]:  # weights stay in the mapped file, as they do with .onnx
        options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
        options.add_session_config_entry("session.use_ort_model_bytes_directly", "1")
        options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
    problem = add_provider(options, folder / app["kernels"])
    in_file = app["in_file"] and not problem
    if in_file or not app["optimize"]:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"] if problem else None  # those of the options
    session = ort.InferenceSession(str(folder / graph), options, providers)
    if app["packed"] and not in_file:
        release(str(folder / app["weights"]))
    return session, f"cpu: {problem}" if problem else describe_nodes(session)


def add_provider(options: ort.SessionOptions, library: Path) -> str:
    """Let edgetie's execution provider run what it can; returns why it cannot, or nothing."""
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24):
        return f"edgetie's needs onnxruntime 1.24, this is {ort.__version__}"

    def find_devices() -> list[ort.OrtEpDevice]:
        return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]

    try:
        if not find_devices():  # not registered in this process
            ort.register_execution_provider_library(PROVIDER, str(library))
        options.add_provider_for_devices(find_devices()[:1], {})
    except Exception as error:  # classes without a common base
        return str(error).splitlines()[0]
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ""


def describe_nodes(session: ort.InferenceSession) -> str:
    """Describe what edgetie's provider runs; of an .ort file, onnxruntime keeps no record."""
    parts = session.get_provider_graph_assignment_info()
    nodes = [part.ep_name for part in parts for _ in part.get_nodes()]
    return f"edgetie ({nodes.count(PROVIDER)} of {len(nodes)} nodes)" if nodes else "edgetie"


def release(path: str) -> None:
    """Release the pages of a mapped file whose weights ONNX Runtime has packed (Linux)."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5] == path:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
            )
