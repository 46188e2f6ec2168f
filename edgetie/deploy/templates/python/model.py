"""A language model and a conversation with it: the part to copy into an app."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sampling import Sampler
from session import open_session
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
TYPES = {"float": np.float32, "int8": np.int8}


class Model:
    """The model, opened once, and one conversation with it.

    Attributes:
        app: the settings in ``app.json``.
        provider: the execution provider that runs the model.
        turns: each prompt of the conversation and its answer.
        read: how many tokens were read for the last answer; the cache had those before them.
        written: the tokens of the last answer, the one that ended it included.
    """

    def __init__(self) -> None:
        self.app = json.loads((HERE / "app.json").read_text("utf-8"))
        self.tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.session, self.provider = open_session(HERE, self.app)
        self.binding = self.session.io_binding()
        self.turns: list[tuple[str, str]] = []
        self.read, self.written = 0, list[int]()
        self._cached: list[int] = []  # the tokens whose keys and values are in the caches
        shape = (1, self.app["cache_heads"], 0, self.app["cache_size"])
        self._caches = [np.zeros(shape, TYPES[self.app["cache_dtype"]]) for _ in self.app["cache"]]

    def reset(self) -> None:
        """Begin a new conversation."""
        self.turns = []

    def answer(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        seed: int | None = None,
        stop_strings: Sequence[str] | None = None,
        **sampling: float,
    ) -> Iterator[str]:
        """Yield the text of the answer to a prompt, which continues the conversation.

        An app stops an answer by not asking for more of it. The oldest turns are forgotten if the
        conversation fills three quarters of what the model accepts.

        Args:
            prompt: of the user.
            max_new_tokens: most tokens of the answer.
            seed, sampling: of :class:`sampling.Sampler`; by default as the model's settings say.
            stop_strings: texts that end the answer and are left out of it.

        Raises:
            ValueError: if an option is out of range, or the prompt has no tokens or too many.
        """
        if max_new_tokens < 1:
            raise ValueError("max_new_tokens must be 1 or more")
        sampler = Sampler(seed=seed, **{**self.app["sampling"], **sampling})
        stops = [*filter(None, self.app["stop_strings"] if stop_strings is None else stop_strings)]
        history = self.turns if self.app["next_prompt"] is not None else []
        turns = [*history, (prompt.strip() if self.app["trim_prompt"] else prompt, "")]
        longest = self.app["max_positions"]
        while len(ids := self._encode(turns)) > (longest or len(ids)) * 3 // 4 and len(turns) > 1:
            turns = turns[1:]
        if not ids:
            raise ValueError("the prompt has no tokens")
        if longest and len(ids) > longest:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model takes {longest}")
        self.turns = turns
        self.written = []
        shown, tokens = "", list[int]()
        for token in self._generate(ids, max_new_tokens, sampler):
            self.written.append(token)
            if token in self.app["stop_tokens"]:
                break
            tokens.append(token)
            text, stopped = cut(self.tokenizer.decode(tokens), stops)
            yield self._show(shown, text)
            shown = text
            if stopped:
                return
        yield self._show(shown, self.tokenizer.decode(tokens))

    def _show(self, shown: str, text: str) -> str:
        """Keep the answer so far; returns what is new in it."""
        answer = text.strip() if self.app["trim_answer"] else text
        self.turns[-1] = (self.turns[-1][0], answer)
        return text[len(shown) :]

    def _encode(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Tokenize a conversation as the chat template writes it."""
        text, app = self.app["before_prompt"], self.app
        for prompt, answer in turns[:-1]:
            text += prompt + app["before_answer"] + answer + app["next_prompt"]
        text += turns[-1][0] + app["after_prompt"]
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*app["prefix"], *ids, *app["suffix"]]

    def _generate(self, ids: list[int], most: int, sampler: Sampler) -> Iterator[int]:
        """Yield the tokens that continue ``ids``, of which only what the cache lacks is read."""
        kept = 0
        while kept < min(len(ids) - 1, len(self._cached)) and self._cached[kept] == ids[kept]:
            kept += 1
        del self._cached[kept:]
        length = min(len(ids) + most, self.app["max_positions"] or len(ids) + most)
        self._reserve(length)
        fresh, self.read = ids[kept:], len(ids) - kept
        sampler.see(ids)
        for _ in range(most):
            token = sampler.select(self._run(fresh))
            yield token
            if len(self._cached) == length:
                return
            sampler.see([token])
            fresh = [token]

    def _reserve(self, length: int) -> None:
        """Make room for so many tokens. Past and present share buffers: a step appends to them."""
        room = self._caches[0].shape[2]
        if length <= room:
            return
        length = min(max(length, 2 * room), self.app["max_positions"] or 2 * length)
        for index, name in enumerate(self.app["cache"]):
            old, kept = self._caches[index], len(self._cached)
            shape = (1, old.shape[1], length, old.shape[3])
            new = np.zeros(shape, old.dtype)
            new[:, :, :kept] = old[:, :, :kept]
            memory = ("cpu", 0, new.dtype.type, shape, new.ctypes.data)
            self.binding.bind_input(f"past_key_values.{name}", *memory)
            self.binding.bind_output(f"present.{name}", *memory)
            self._caches[index] = new

    def _run(self, fresh: list[int]) -> np.ndarray:
        """Read tokens; returns the logits of the next one."""
        first, end = len(self._cached), len(self._cached) + len(fresh)
        feeds = {
            "input_ids": np.array([fresh], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(first, end)[None],
        }
        for name in self.app["inputs"]:
            self.binding.bind_cpu_input(name, feeds[name])
        self.binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(self.binding)
        self._cached += fresh
        logits = self.binding.get_outputs()[-1].numpy()  # bound last
        return np.asarray(logits[0, -1])


def cut(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """Cut a text at a stop string, or at what may become one or is not yet a whole character."""
    places = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    if places:
        return text[: min(places)], True
    text = text.rstrip("\ufffd")
    parts = [stop[:size] for stop in stop_strings for size in range(1, len(stop))]
    pending = max((len(part) for part in parts if text.endswith(part)), default=0)
    return text[: len(text) - pending], False
