"""Sessions: a bundle opened in ONNX Runtime, its weights mapped from the file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.errors import BundleError, ProviderError, summarize
from edgetie.graph.tensors import PAST, CacheTensor, TensorInfo
from edgetie.providers.placement import count_nodes, require_placement
from edgetie.providers.registry import Provider, register_plugin, require_provider
from edgetie.runtime.graph import FOLDER, without_last_token
from edgetie.runtime.memory import MappedFiles, release_code, release_heap

OWN, CROSS = ".decoder.", ".encoder."
"""Of a decoder behind an encoder: its own cache, and that of cross-attention."""
_SHARE, _LAST_SHARED = "ep.share_ep_contexts", "ep.stop_share_ep_contexts"
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


@dataclass
class Session:
    """An opened model.

    Attributes:
        bundle: what was opened.
        provider: short name of its execution provider.
        threads: threads an operator runs on.
        load_seconds: from the call of :func:`open_session` to a session ready to run.
        inputs: of the graph, in order.
        outputs: the same.
        cache: keys, values and states of each layer in turn; empty if the model has none.
        cache_dtype: numpy name of its dtype; empty if the model has none.
        cache_in_place: whether keys and values, past and present, may be one buffer of fixed
            length.
        logits: ``last`` (``(batch, 1, vocabulary)``, of each row's last token) or ``all``
            (``(batch, sequence, vocabulary)``).
        packed: whether logits of ``all`` tokens come with each row's tokens moved to the left.
        lookups: the mapped files of a model that only looks rows up in them once its weights are
            packed; prompts fill their pages again. ``None`` for other models.
        device: device where inputs and outputs are bound, as IOBinding names it.
        ort: the ``onnxruntime.InferenceSession``; of the decoder, where there is an encoder.
        encoder: the encoder's; ``None`` for other models.
        prefill: the graph for prompts of a bundle of fixed shapes, where it has one.
        cross: the cache of cross-attention, which the encoder makes and the decoder reads.
    """

    bundle: Bundle
    provider: str
    threads: int
    load_seconds: float
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    cache: list[CacheTensor]
    cache_dtype: str
    cache_in_place: bool
    logits: Literal["last", "all"]
    packed: bool
    lookups: MappedFiles | None
    device: str
    ort: Any
    encoder: Any = None
    prefill: Any = None
    cross: list[CacheTensor] = field(default_factory=list)

    @property
    def nodes_per_provider(self) -> dict[str, int]:
        """How many nodes of the optimized graph run where."""
        return self._placement[0]

    @property
    def fallback_nodes(self) -> dict[str, int]:
        """How many of each operator run elsewhere than on ``provider``."""
        return self._placement[1]

    @cached_property
    def _placement(self) -> tuple[dict[str, int], dict[str, int]]:
        """Asked for late: of a mapped model that takes a tenth of the time a session starts in."""
        wanted = require_provider(self.provider).ort_name
        return count_nodes(wanted, self.ort, self.encoder, self.prefill)


def open_session(
    source: str | os.PathLike[str] | Bundle,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    logits: Literal["default", "all"] = "default",
    release: bool = True,
    strict: bool = False,
) -> Session:
    """Open a bundle, a directory with one ONNX model, or an ``.onnx`` file.

    Args:
        source: its path, or an opened bundle.
        provider: short name of an execution provider (:data:`edgetie.runtime.PROVIDERS`).
        threads: threads an operator runs on; ``None`` takes every physical core.
        logits: ``all`` gives the logits of every token, where the model keeps the last only.
        release: let go of file pages whose weights ONNX Runtime has packed into memory of its own.
        strict: take no provider that leaves nodes to another one.

    Raises:
        BundleError: if it cannot be opened or ONNX Runtime rejects it, or ``threads`` or ``logits``
            are none.
        ProviderError: if the provider is unknown, absent, or takes no node of the model, or not
            every one and it must.
    """
    start = time.perf_counter()
    if logits not in ("default", "all"):
        raise BundleError(f"logits {logits}: unknown; default or all")
    if threads is not None and threads < 1:
        raise BundleError(f"threads {threads}: must be 1 or more")
    row = require_provider(provider)
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    fixed = bundle.has_fixed_shapes
    every = without_last_token(bundle.model_path) if logits == "all" and not fixed else None
    options = session_options(threads or default_threads())
    if row.plugin:
        register_plugin(row, options)
    compiled = bundle.manifest.compiled
    if compiled and compiled != row.name:
        raise ProviderError(
            f"{bundle.directory}: is compiled for {compiled}; run it with --provider {compiled}"
        )
    mapped = bundle.manifest.weights_in_memory == "mapped"
    if mapped:
        # made to run as it is: nothing is gained, and a session takes twice as long to start
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = None
    if every is not None:
        graph = every[0].SerializeToString()
        options.add_session_config_entry(FOLDER, str(every[1]))
    beside = None
    if len(bundle.model_paths) > 1:
        if compiled:
            options.add_session_config_entry(_SHARE, "1")
        beside = _create(bundle.model_paths[0], None, options, row)
        if compiled:
            options.add_session_config_entry(_LAST_SHARED, "1")
    encoder, prefill = (None, beside) if fixed else (beside, None)
    session = _create(bundle.model_path, graph, options, row)
    inputs = [_info(value) for value in session.get_inputs()]
    outputs = [_info(value) for value in session.get_outputs()]
    kind = _logits_kind(outputs)
    if logits == "all" and kind == "last" and not fixed:
        raise BundleError(
            f"{bundle.model_path}: gives logits of the last token only, and the node that keeps it "
            "cannot be told; export the model again with edgetie"
        )
    made = outputs if encoder is None else [_info(value) for value in encoder.get_outputs()]
    cross = _cache(inputs, made, bundle.model_path, CROSS) if encoder is not None else []
    cache = _cache(inputs, outputs, bundle.model_path, OWN if cross else "")
    if row.fixed_shapes and any(isinstance(size, str) for info in inputs for size in info.shape):
        raise ProviderError(
            f"--provider {row.name}: {bundle.model_path} has open shapes, of which it compiles "
            "nothing; edgetie fix-shapes fixes them"
        )
    files = MappedFiles(bundle.data_files) if release and not mapped else None
    if files is not None:
        files.release()
    if release:
        release_code(onnxruntime_pybind11_state.__file__)
        release_heap()  # weights are packed in memory of which some is left over
    opened = Session(
        bundle=bundle,
        provider=row.name,
        threads=options.intra_op_num_threads,
        load_seconds=time.perf_counter() - start,
        inputs=inputs,
        outputs=outputs,
        cache=cache,
        cache_dtype=next((i.dtype for i in inputs if i.name.startswith(f"{PAST}.")), ""),
        cache_in_place=bool(cache) and bundle.manifest.signature.cache_in_place,
        logits=kind,
        packed=graph is not None,
        lookups=files if _is_packed(bundle) else None,
        device=row.device,
        ort=session,
        encoder=encoder,
        prefill=prefill,
        cross=cross,
    )
    if row.ort_name != "CPUExecutionProvider":  # which takes whatever there is
        nodes, fallback_nodes = opened.nodes_per_provider, opened.fallback_nodes
        require_placement(row, bundle.model_path, nodes, fallback_nodes, strict=strict)
    return opened


def _is_packed(bundle: Bundle) -> bool:
    """Whether every product reads a packed copy of its weight, so the file serves lookups only."""
    return bundle.manifest.weights_in_memory == "prepacked"


def default_threads() -> int:
    """Physical cores this process may run on; all it may run on where that cannot be told."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii"))
        except OSError:
            return len(allowed)
    return len(cores)


def session_options(threads: int) -> Any:
    """ONNX Runtime's options as edgetie sets them; what is not named here was best as it is.

    Threads wait actively for the next operator (a quarter more tokens per second than asleep), but
    hardly longer than it takes to wake one: on a busy machine that makes prompts 40 % and tokens
    20 % faster than the default, on a quiet one it changes nothing. Memory patterns are off: one is
    kept for every length a sequence has had, 27 KB a token on a model of 135 M parameters. Products
    of uint8 and int8 are exact also on x86 processors without VNNI, whose own sums overflow.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # an error is raised, once is enough
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def write_optimized(model_path: Path, target: Path, provider: str = "cpu") -> dict[str, int]:
    """Write a graph as ONNX Runtime runs it; weights go to a file with ``.data`` added.

    Returns:
        How many of its nodes run on which provider.

    Raises:
        BundleError: if ONNX Runtime rejects the model.
        ProviderError: if the provider is unknown or absent.
    """
    options = session_options(default_threads())
    options.optimized_model_filepath = str(target)
    entries = {
        "session.optimized_model_external_initializers_file_name": f"{target.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    row = require_provider(provider)
    if row.plugin:
        register_plugin(row, options)
    return count_nodes(row.ort_name, _create(model_path, None, options, row))[0]


def write_contexts(graphs: list[Path], folder: Path, provider: str) -> None:
    """Compile graphs and write what came of them: each as a graph of the same name, and one context
    binary beside them, which holds the weights they share once.

    Raises:
        BundleError: if ONNX Runtime rejects a graph, or the provider takes none of its nodes.
        ProviderError: if the provider is unknown or absent.
    """
    row = require_provider(provider)
    for place, path in enumerate(graphs):
        options = session_options(default_threads())
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "0")
        options.add_session_config_entry("ep.context_file_path", str(folder / path.name))
        if len(graphs) > 1:
            options.add_session_config_entry(_SHARE, "1")
            if place == len(graphs) - 1:
                options.add_session_config_entry(_LAST_SHARED, "1")
        register_plugin(row, options)
        _create(path, None, options, row)
        if not (folder / path.name).is_file():
            raise BundleError(f"{path}: {row.name} takes none of its nodes; run it as it is")


def _create(path: Path, graph: bytes | None, options: Any, provider: Provider) -> Any:
    """An InferenceSession on ``provider``, with ONNX Runtime's own fallbacks switched off."""
    source = str(path) if graph is None else graph
    chosen = [] if provider.plugin else [(provider.ort_name, dict(provider.options))]
    try:
        session = ort.InferenceSession(source, options, providers=chosen or None, enable_fallback=0)
    except Exception as error:  # pybind11 classes without a common base
        message = summarize(error)
        if provider.name == "cpu":
            raise BundleError(f"{path}: ONNX Runtime cannot load it: {message}") from error
        raise ProviderError(f"--provider {provider.name}: cannot load {path}: {message}") from error
    session.disable_fallback()
    first = session.get_providers()[0]
    if first != provider.ort_name:
        raise ProviderError(
            f"--provider {provider.name}: did not start, ONNX Runtime fell back to {first}; "
            f"check the drivers that {provider.package} needs"
        )
    return session


def _info(value: Any) -> TensorInfo:
    name = str(value.type).removeprefix("tensor(").removesuffix(")")
    return TensorInfo(value.name, _NUMPY_NAMES.get(name, name), tuple(value.shape))


def _logits_kind(outputs: list[TensorInfo]) -> Literal["last", "all"]:
    shape = next((output.shape for output in outputs if output.name == "logits"), ())
    return "last" if len(shape) == 3 and shape[1] == 1 else "all"


def _cache(
    inputs: list[TensorInfo], outputs: list[TensorInfo], path: Path, part: str
) -> list[CacheTensor]:
    """The cache inputs whose names contain ``part``, and the outputs that make them."""
    names = {output.name for output in outputs}
    tensors = []
    for value in inputs:
        if not value.name.startswith(f"{PAST}.") or part not in value.name:
            continue
        sizes = tuple(size if isinstance(size, int) else 0 for size in value.shape[1:])
        tensor = CacheTensor(value.name.removeprefix(f"{PAST}."), sizes)
        if tensor.present not in names or not any(sizes) or sizes.count(0) > 1:
            raise BundleError(
                f"{path}: cache input {value.name} {list(value.shape)} is neither (batch, "
                "kv_heads, length, head_size) nor a state of one size, with an output "
                f"{tensor.present}; export the model with edgetie"
            )
        tensors.append(tensor)
    return tensors
