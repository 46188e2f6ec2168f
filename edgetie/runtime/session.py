"""Open bundles in ONNX Runtime, their weights mapped from the file."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.names import AUDIO
from edgetie.errors import BundleError, ProviderError, summarize
from edgetie.graph.tensors import PAST, CacheTensor, TensorInfo
from edgetie.providers.placement import (
    count_nodes,
    find_operators,
    require_placement,
    resolve_provider,
    runs_all_products,
)
from edgetie.providers.registry import AUTO, OWN, Provider, register_plugin, require_provider
from edgetie.runtime.adapters import AdapterFile, open_adapter
from edgetie.runtime.in_memory_graph import EXTERNAL_DATA_FOLDER, edit_logits
from edgetie.runtime.memory import MappedFiles, release_heap

_SELF, _CROSS = ".decoder.", ".encoder."
"""Parts of cache names of an encoder-decoder model: self-attention and cross-attention."""
_SHARE_CONTEXT, _LAST_TO_SHARE = "ep.share_ep_contexts", "ep.stop_share_ep_contexts"


@dataclass
class Session:
    """An opened model.

    Attributes:
        bundle: what was opened.
        provider: short name of its execution provider; never ``auto``.
        threads: intra-op threads.
        load_seconds: from the call of :func:`open_session` to a session ready to run.
        inputs, outputs: of the graph, in order.
        cache: keys, values and states of each layer in turn; empty if the model has none.
        cache_dtype: numpy name of its dtype; empty if the model has none.
        cache_in_place: whether past and present keys and values may share one buffer.
        logits: ``last``, ``(batch, 1, vocabulary)``, or ``all``, ``(batch, sequence, vocabulary)``.
        speculates: whether generation proposes tokens and verifies several in one run
            (:mod:`edgetie.runtime.decoding.speculation`).
        left_aligned_logits: whether the tokens of ``all`` logits are moved to the left.
        embedding_files: mapped files from which only embeddings are read, or ``None``.
        device: device where inputs and outputs are bound, as IOBinding names it.
        ort: the ``onnxruntime.InferenceSession``, the decoder's if there is an encoder.
        encoder: the encoder's; ``None`` for other models.
        prefill: the graph for prompts of a bundle of fixed shapes, if it has one.
        cross: the cache of cross-attention, which the encoder writes and the decoder reads.
        adapter: name of the LoRA adapter in use, see :meth:`use_adapter`; ``None`` for the base.
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
    speculates: bool
    left_aligned_logits: bool
    embedding_files: MappedFiles | None
    device: str
    ort: Any
    encoder: Any
    prefill: Any
    cross: list[CacheTensor]
    adapter: str | None = field(default=None, init=False)
    _adapters: dict[str, AdapterFile] = field(default_factory=dict, init=False, repr=False)

    def use_adapter(self, name: str | None) -> None:
        """Switch to a LoRA adapter of the bundle, or with ``None`` to the base alone.

        A :class:`~edgetie.runtime.decoding.decoder.Decoder` has the adapter that was in use when it
        was made, and so have texts that :func:`edgetie.generate` began. Weights of the base are not
        loaded again.

        Raises:
            BundleError: if the bundle has no such adapter, or its file is not one of this graph.
        """
        if name is not None and name not in self._adapters:
            self._adapters[name] = open_adapter(self.bundle, self.ort, name)
        if self.adapter not in (None, name):
            self._adapters[str(self.adapter)].release()
        self.adapter = name

    @property
    def adapter_tensors(self) -> dict[str, NDArray[Any]]:
        """Inputs of the graph that the adapter in use fills; empty for the base alone."""
        return {} if self.adapter is None else self._adapters[self.adapter].tensors

    @property
    def nodes_per_provider(self) -> dict[str, int]:
        """Nodes of the optimized graph per provider."""
        return self._placement[0]

    @property
    def fallback_nodes(self) -> dict[str, int]:
        """Nodes per operator that run on another provider than ``provider``."""
        return self._placement[1]

    @cached_property
    def _placement(self) -> tuple[dict[str, int], dict[str, int]]:
        """Computed on demand: it takes a tenth of the time in which a mapped model starts."""
        provider = require_provider(self.provider).ort_name
        return count_nodes(provider, self.ort, self.encoder, self.prefill)


def open_session(
    source: str | os.PathLike[str] | Bundle,
    *,
    provider: str = AUTO,
    threads: int | None = None,
    logits: Literal["default", "all"] = "default",
    speculate: bool | None = None,
    release: bool = True,
    strict: bool = False,
    prepack: bool = True,
) -> Session:
    """Open a bundle, a directory with one ONNX model, or an ``.onnx`` file.

    Args:
        source: its path, or an opened bundle.
        provider: a name of :data:`edgetie.providers.registry.PROVIDERS`, or ``auto``: edgetie's
            own provider if it is here and runs nodes of the model, otherwise ``cpu``.
        threads: intra-op threads; ``None`` for every physical core.
        logits: ``all`` for the logits of every token of a model that returns only the last.
        speculate: generate one text by proposing tokens from it and verifying several in one run.
            The tokens stay the same. ``None``: if edgetie's own provider runs all products.
        release: release file pages whose weights ONNX Runtime has packed into its own memory.
        strict: refuse a provider that leaves nodes to another one; ``auto`` may.
        prepack: let ONNX Runtime copy weights into its own layout. Without, the session takes less
            memory to start and more time to run.

    Raises:
        BundleError: if it cannot be opened or ONNX Runtime rejects it, or ``threads`` or ``logits``
            are invalid, or with ``speculate`` if it cannot verify several tokens in one run.
        ProviderError: if the provider is unknown, absent, or runs none of the model's nodes, or
            with ``strict`` not all.
    """
    start = time.perf_counter()
    _require_valid(logits, threads)
    spec = require_provider(provider)
    bundle = source if isinstance(source, Bundle) else open_bundle(source)
    path, fixed = bundle.model_path, bundle.has_fixed_shapes
    options = _bundle_options(bundle, spec, threads or default_threads(), prepack)
    others = MappedFiles(bundle.data_files if release else ())  # of sessions that may end earlier
    wanted = spec.name == OWN and not bundle.is_bare if speculate is None else speculate
    graph = edit_logits(bundle, logits, several=wanted)
    first = _create_first(bundle, options, spec)
    encoder, prefill = (None, first) if fixed else (first, None)
    session = _create(path, options, spec, graph)
    inputs = describe_tensors(session.get_inputs())
    outputs = describe_tensors(session.get_outputs())
    shape = next((output.shape for output in outputs if output.name == "logits"), ())
    selects = graph is not None and logits == "default"
    last_only = len(shape) == 3 and (selects or shape[1] == 1)
    if logits == "all" and last_only and not fixed:
        raise BundleError(
            f"{path}: returns logits of the last token only, and the node that selects it was not "
            "found; export the model again with edgetie"
        )
    cross = []
    if encoder is not None:
        cross = _cache(inputs, describe_tensors(encoder.get_outputs()), path, _CROSS)
    _require_shapes(spec, path, inputs)
    operators = find_operators(*((session, encoder, prefill) if spec.name == OWN else ()))
    own_operators = operators.get(spec.ort_name, set())
    is_exact = runs_all_products(spec.ort_name, operators)
    spec = resolve_provider(provider, {spec.ort_name: len(own_operators)})
    is_mapped = bundle.manifest.weights_in_memory == "mapped" or not prepack
    in_file = is_mapped or "MatMulNBits" in own_operators
    cache = _cache(inputs, outputs, path, _SELF if cross else "")
    can_verify = selects and not cross and _can_go_back(inputs, cache)
    _require_verification(path, can_verify or not speculate)
    opened = Session(
        bundle=bundle,
        provider=spec.name,
        threads=options.intra_op_num_threads,
        inputs=inputs,
        outputs=outputs,
        cache=cache,
        cache_dtype=next((i.dtype for i in inputs if i.name.startswith(PAST)), ""),
        cache_in_place=bundle.manifest.signature.cache_in_place,
        logits="last" if last_only else "all",
        speculates=can_verify and (speculate or is_exact),
        left_aligned_logits=graph is not None and not selects,
        embedding_files=_release_weights(bundle, in_file, others) if release else None,
        load_seconds=time.perf_counter() - start,
        device=spec.device,
        ort=session,
        encoder=encoder,
        prefill=prefill,
        cross=cross,
    )
    if spec.ort_name != "CPUExecutionProvider" and provider.lower() != AUTO:
        nodes, fallback = opened.nodes_per_provider, opened.fallback_nodes
        require_placement(spec, path, nodes, fallback, strict=strict)
    return opened


def _require_valid(logits: str, threads: int | None) -> None:
    if logits not in ("default", "all"):
        raise BundleError("unknown; default or all", parameter="logits", value=logits)
    if threads is not None and threads < 1:
        raise BundleError("must be 1 or more", parameter="threads", value=threads)


def _require_shapes(spec: Provider, path: Path, inputs: list[TensorInfo]) -> None:
    if spec.fixed_shapes and any(isinstance(s, str) for info in inputs for s in info.shape):
        raise spec.error(
            f"{path} has open shapes, and {spec.name} compiles fixed ones only; fix them first "
            "(fix_shapes)"
        )


def _can_go_back(inputs: list[TensorInfo], cache: list[CacheTensor]) -> bool:
    """Whether the last tokens can be forgotten: there is no state, and no audio for each token."""
    return all(each.grows for each in cache) and all(info.name != AUDIO for info in inputs)


def _require_verification(path: Path, can_verify: bool) -> None:
    if not can_verify:
        raise BundleError(
            f"{path}: cannot verify several tokens in one run; that needs a decoder of text or "
            "images that edgetie exported, with a cache in place and open shapes",
            parameter="speculate",
            value=True,
        )


@contextmanager
def onnxruntime_errors(path: Path) -> Iterator[None]:
    """Raise what ONNX Runtime raises while it runs the model at ``path`` as a BundleError."""
    try:
        yield
    except Exception as error:  # pybind11 classes without a common base
        raise BundleError(f"{path}: ONNX Runtime failed: {summarize(error)}") from error


def default_threads() -> int:
    """Count the physical cores this process may run on; all its cores if these are not known."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(cpu)).read_text(encoding="ascii") for cpu in allowed})
    except OSError:
        return len(allowed)


def session_options(threads: int, provider: Provider | None = None) -> Any:
    """Make ONNX Runtime's options as edgetie sets them; defaults are best for the others."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # ONNX Runtime stores a pattern for every length, 27 KB a token on a model of 135 M parameters
    options.enable_mem_pattern = False
    # Threads wait actively for the next operator (a quarter more tokens per second than asleep),
    # but hardly longer than it takes to wake one: on a busy machine that makes prompts 40 % and
    # tokens 20 % faster than the default.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    # sums of uint8 times int8 overflow on x86 processors without VNNI otherwise
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # an error is raised, once is enough
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider is not None and provider.plugin:
        devices = register_plugin(provider)
        options.add_provider_for_devices(devices[:1], dict(provider.options))
    return options


def start_session(source: str | bytes, options: Any, provider: Provider) -> Any:
    """Start an InferenceSession with the options that :func:`session_options` made for it."""
    providers = None if provider.plugin else [(provider.ort_name, dict(provider.options))]
    return ort.InferenceSession(source, options, providers=providers, enable_fallback=0)


def _bundle_options(bundle: Bundle, provider: Provider, threads: int, prepack: bool) -> Any:
    options = session_options(threads, provider)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    compiled = bundle.manifest.compiled
    if compiled and compiled != provider.name:
        raise ProviderError(
            f"{bundle.directory}: is compiled for {compiled}", advice={"provider": compiled}
        )
    is_folded = provider.name == OWN and bundle.manifest.quantization.get("folded")
    if is_folded or bundle.manifest.weights_in_memory == "mapped":
        # its graph is final: optimizing gains nothing and doubles the time to start
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _create_first(bundle: Bundle, options: Any, provider: Provider) -> Any:
    """The session of an encoder, or of a graph for prompts; ``None`` if the bundle has neither."""
    if len(bundle.model_paths) == 1:
        return None
    if bundle.manifest.compiled:
        options.add_session_config_entry(_SHARE_CONTEXT, "1")
    session = _create(bundle.model_paths[0], options, provider)
    if bundle.manifest.compiled:
        options.add_session_config_entry(_LAST_TO_SHARE, "1")
    return session


def _release_weights(bundle: Bundle, in_file: bool, others: MappedFiles) -> MappedFiles | None:
    """Release what only starting a session needed; prompts fill the files' pages again.

    Nothing of the files if matrix products read weights ``in_file``, nor of mappings that are
    ``others``'.
    """
    files = None
    if not in_file:
        files = others.added()
        files.release()
    # 10 MB of ONNX Runtime's code only start a session
    MappedFiles([onnxruntime_pybind11_state.__file__]).release(written=False)
    release_heap()  # packing leaves some memory over
    return files if bundle.manifest.weights_in_memory == "prepacked" else None


def write_optimized(model_path: Path, target: Path, provider: str = AUTO) -> dict[str, int]:
    """Write a graph as ONNX Runtime runs it, its weights in ``.data``; returns nodes per provider.

    ONNX Runtime cannot write nodes that edgetie's provider joins: the graph is then the one that it
    runs on the CPU. Constants are folded in the same way, before nodes are assigned.

    Raises:
        BundleError, ProviderError: if ONNX Runtime rejects the model or lacks the provider.
    """
    spec = require_provider(provider)
    nodes: dict[str, int] = {}
    if spec.name == OWN:
        session = _create(model_path, session_options(default_threads(), spec), spec)
        nodes = count_nodes(spec.ort_name, session)[0]
        spec = require_provider("cpu")
    options = session_options(default_threads(), spec)
    options.optimized_model_filepath = str(target)
    external = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{external}_file_name", f"{target.name}.data")
    options.add_session_config_entry(f"{external}_min_size_in_bytes", "1024")
    session = _create(model_path, options, spec)
    return nodes or count_nodes(spec.ort_name, session)[0]


def write_contexts(graphs: list[Path], folder: Path, provider: str) -> None:
    """Compile graphs; write each under its name, and one context binary, which shares weights.

    Raises:
        BundleError: if ONNX Runtime rejects a graph, or the provider runs none of its nodes.
    """
    spec = require_provider(provider)
    for path in graphs:
        options = session_options(default_threads(), spec)
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "0")
        options.add_session_config_entry("ep.context_file_path", str(folder / path.name))
        if len(graphs) > 1:
            options.add_session_config_entry(_SHARE_CONTEXT, "1")
            if path == graphs[-1]:
                options.add_session_config_entry(_LAST_TO_SHARE, "1")
        _create(path, options, spec)
        if not (folder / path.name).is_file():
            raise BundleError(f"{path}: {spec.name} runs none of its nodes; use it uncompiled")


def _create(
    path: Path, options: Any, provider: Provider, graph: tuple[bytes, Path] | None = None
) -> Any:
    """An InferenceSession without ONNX Runtime's own fallbacks, of a graph in memory if given."""
    source: str | bytes = str(path)
    if graph is not None:
        source = graph[0]
        options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(graph[1]))
    try:
        session = start_session(source, options, provider)
    except Exception as error:  # pybind11 classes without a common base
        message = summarize(error)
        if provider.name in ("cpu", OWN):
            raise BundleError(f"{path}: ONNX Runtime cannot load it: {message}") from error
        raise provider.error(f"cannot load {path}: {message}") from error
    session.disable_fallback()
    first = session.get_providers()[0]
    if first != provider.ort_name:
        raise provider.error(
            f"did not start, ONNX Runtime fell back to {first}; "
            f"check the drivers that {provider.package} needs"
        )
    return session


def describe_tensors(values: list[Any]) -> list[TensorInfo]:
    """Describe inputs or outputs of an ONNX Runtime session."""
    dtypes = [value.type.removeprefix("tensor(").removesuffix(")") for value in values]
    infos = [TensorInfo(v.name, t, tuple(v.shape)) for v, t in zip(values, dtypes, strict=True)]
    return [replace(info, dtype=info.numpy_dtype) for info in infos]


def _cache(
    inputs: list[TensorInfo], outputs: list[TensorInfo], path: Path, part: str
) -> list[CacheTensor]:
    """The cache inputs whose names contain ``part``, each with its output."""
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
