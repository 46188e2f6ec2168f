"""Answers a prompt: python app.py "What is the capital of France?" [most tokens]"""

import json
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
PROVIDER = "EdgetieExecutionProvider"


class Model:
    """The model, opened once."""

    def __init__(self) -> None:
        self.app = json.loads((HERE / "app.json").read_text("utf-8"))
        self.tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        options = ort.SessionOptions()
        options.enable_mem_pattern = False  # it would store one for every length
        # exact sums of uint8 times int8 also on x86 processors without VNNI
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 4  # an error is raised
        if self.app["ort_format"]:  # weights stay in the mapped file, as they do with .onnx
            options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
            options.add_session_config_entry("session.use_ort_model_bytes_directly", "1")
            options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
        problem = add_provider(options, HERE / self.app["kernels"])
        in_file = self.app["in_file"] and not problem
        if in_file or not self.app["optimize"]:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = ["CPUExecutionProvider"] if problem else None  # those of the options
        self.session = ort.InferenceSession(str(HERE / self.app["model"]), options, providers)
        self.provider = f"cpu: {problem}" if problem else describe_nodes(self.session)
        if self.app["packed"] and not in_file:
            release(str(HERE / self.app["weights"]))

    def tokens(self, prompt: list[int], most: int) -> Iterator[int]:
        """Yield the most likely tokens after a prompt, up to one that ends the text.

        Raises:
            ValueError: if the prompt has no tokens, or more than the model accepts.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens")
        length, longest = len(prompt) + most, self.app["max_positions"]
        if longest and len(prompt) > longest:
            raise ValueError(f"the prompt has {len(prompt)} tokens, the model takes {longest}")
        if longest:
            length = min(length, longest)
        binding = self.session.io_binding()
        # past and present share one buffer of the full length: a step appends one token to it
        shape = (1, self.app["cache_heads"], length, self.app["cache_size"])
        dtype = {"float": np.float32, "int8": np.int8}[self.app["cache_dtype"]]
        buffers = [np.zeros(shape, dtype) for _ in self.app["cache"]]
        for name, buffer in zip(self.app["cache"], buffers, strict=True):
            memory = ("cpu", 0, dtype, shape, buffer.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *memory)
            binding.bind_output(f"present.{name}", *memory)
        ids, seen = np.array([prompt], np.int64), 0
        while most > 0 and seen + ids.shape[1] <= length:
            seen += ids.shape[1]
            feeds = {
                "input_ids": ids,
                "attention_mask": np.ones((1, seen), np.int64),
                "position_ids": np.arange(seen - ids.shape[1], seen)[None],
            }
            for name in self.app["inputs"]:
                binding.bind_cpu_input(name, feeds[name])
            binding.bind_output("logits", "cpu")
            self.session.run_with_iobinding(binding)
            logits = binding.get_outputs()[-1].numpy()  # bound last
            token = int(logits[0, -1].argmax())
            yield token
            if token in self.app["stop_tokens"]:
                return
            ids, most = np.array([[token]], np.int64), most - 1

    def encode(self, prompt: str) -> list[int]:
        """Tokenize a prompt, with the text and tokens that the model expects around it."""
        prompt = prompt.strip() if self.app["trim"] else prompt
        text = self.app["before_prompt"] + prompt + self.app["after_prompt"]
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*self.app["prefix"], *ids, *self.app["suffix"]]

    def answer(self, prompt: str, most: int) -> Iterator[str]:
        """Yield the text of the answer to a prompt."""
        tokens: list[int] = []
        shown = ""
        for token in self.tokens(self.encode(prompt), most):
            if token in self.app["stop_tokens"]:
                break
            tokens.append(token)
            text = self.tokenizer.decode(tokens)
            if not text.endswith("\ufffd"):  # an incomplete character
                yield text[len(shown) :]
                shown = text
        yield self.tokenizer.decode(tokens)[len(shown) :]


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
    import ctypes

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


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else input("Prompt: ")
    try:
        most = int(sys.argv[2]) if len(sys.argv) > 2 else 128
        model = Model()
        for piece in model.answer(prompt, most):
            print(piece, end="", flush=True)
    except ValueError as error:
        sys.exit(f"app: {error}")
    print()
    print(f"app: run by {model.provider}", file=sys.stderr)


if __name__ == "__main__":
    main()
