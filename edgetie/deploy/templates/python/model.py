"""A language model and a conversation with it: the part to copy into an app."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from images import Image, ImageError, ImageReader, image_positions
from sampling import Sampler
from session import open_session
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
TYPES = {"float": np.float32, "int8": np.int8}


class Turn(NamedTuple):
    """A prompt, its answer, and the image that the prompt is about."""

    prompt: str
    answer: str = ""
    image: Image | None = None


class Model:
    """The model, opened once, and one conversation with it.

    Attributes:
        app: the settings in ``app.json``.
        images: reads images; ``None`` if the model does not.
        provider: the execution provider that runs the model.
        turns: of the conversation.
        read: how many tokens were read for the last answer; the cache had those before them.
        written: the tokens of the last answer, the one that ended it included.
    """

    def __init__(self) -> None:
        self.app = json.loads((HERE / "app.json").read_text("utf-8"))
        self.tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.images = ImageReader(HERE, self.app) if self.app["images"] else None
        self.session, self.provider = open_session(HERE, self.app, self.app["model"])
        self.binding = self.session.io_binding()
        self.turns: list[Turn] = []
        self.read, self.written = 0, list[int]()
        self._cached: list[object] = []  # the tokens, or images, whose keys and values are cached
        shape = (1, self.app["cache_heads"], 0, self.app["cache_size"])
        self._caches = [np.zeros(shape, TYPES[self.app["cache_dtype"]]) for _ in self.app["cache"]]

    @property
    def needs_image(self) -> bool:
        """Whether each prompt, which may be empty, needs an image."""
        return self.images is not None and self.app["images"]["required"]

    def reset(self) -> None:
        """Begin a new conversation."""
        self.turns = []

    def answer(
        self,
        prompt: str,
        *,
        image: str | os.PathLike[str] | None = None,
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
            image: a file that the prompt, and those that follow, are about.
            max_new_tokens: most tokens of the answer.
            seed, sampling: of :class:`sampling.Sampler`; by default as the model's settings say.
            stop_strings: texts that end the answer and are left out of it.

        Raises:
            ImageError: if the image cannot be read, or the model reads none.
            ValueError: if an option is out of range, or the prompt has no tokens or too many.
        """
        if max_new_tokens < 1:
            raise ValueError("max_new_tokens must be 1 or more")
        sampler = Sampler(seed=seed, **{**self.app["sampling"], **sampling})
        stops = [*filter(None, self.app["stop_strings"] if stop_strings is None else stop_strings)]
        history = self.turns if self.app["next_prompt"] is not None else []
        prompt = prompt.strip() if self.app["trim_prompt"] else prompt
        turns = [*history, Turn(prompt, image=self._open(image))]
        longest = self.app["max_positions"]
        while len(ids := self._encode(turns)) > (longest or len(ids)) * 3 // 4 and len(turns) > 1:
            turns = turns[1:]
        if not ids:
            raise ValueError("the prompt has no tokens")
        if longest and len(ids) > longest:
            raise ValueError(f"the prompt has {len(ids)} tokens, the model takes {longest}")
        self._place([turn.image for turn in turns if turn.image], ids)
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
        self.turns[-1] = self.turns[-1]._replace(answer=answer)
        return text[len(shown) :]

    def _open(self, image: str | os.PathLike[str] | None) -> Image | None:
        if image is None:
            if self.needs_image:
                raise ImageError("the model writes the text of an image; give it one")
            return None
        if self.images is None:
            raise ImageError(f"{os.fspath(image)}: the model reads no images")
        return self.images(image)

    def _encode(self, turns: Sequence[Turn]) -> list[int]:
        """Tokenize a conversation as the chat template writes it."""
        text, app = self._before(turns[0], "before_prompt"), self.app
        for turn, following in pairwise(turns):
            text += turn.prompt + app["before_answer"] + turn.answer
            text += self._before(following, "next_prompt")
        text += turns[-1].prompt + app["after_prompt"]
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [*app["prefix"], *ids, *app["suffix"]]

    def _before(self, turn: Turn, name: str) -> str:
        """The text before a prompt, which has the tokens of its image."""
        if turn.image is None or self.needs_image:
            text: str = self.app[name]
            return text
        images = self.app["images"]
        before, after = images[name]
        return "".join([before, images["token"] * turn.image.tokens, after])

    def _place(self, images: Sequence[Image], ids: list[int]) -> None:
        """Find the places of images in a prompt, and the positions of its tokens."""
        self._keys: list[object] = [*ids]
        self._positions = np.arange(len(ids))[None]
        self._feeds: dict[str, np.ndarray] = {}
        settings = self.app["images"]
        if self.needs_image:
            self._feeds = images[-1].feeds
        if self.images is None or self.needs_image:
            return
        places = [i for i, token in enumerate(ids) if token == settings["token_id"]]
        owners = [image for image in images for _ in range(image.tokens)]
        if len(places) != len(owners):
            raise ValueError(f"{settings['token']} stands for an image; leave it out of the prompt")
        for place, image in zip(places, owners, strict=True):
            self._keys[place] = image  # two images have the same tokens
        for name in settings["feeds"]:
            none = np.zeros((0, settings["size"]), np.float32)
            self._feeds[name] = np.concatenate([none, *(image.feeds[name] for image in images)])
        if settings["position_axes"] > 1:
            self._positions = image_positions(ids, settings["token_id"], images)

    def _generate(self, ids: list[int], most: int, sampler: Sampler) -> Iterator[int]:
        """Yield the tokens that continue ``ids``, of which only what the cache lacks is read."""
        kept, most_kept = 0, min(len(ids) - 1, len(self._cached))
        while kept < most_kept and self._cached[kept] == self._keys[kept]:
            kept += 1
        in_place, has_history = self.app["cache_in_place"], self.app["next_prompt"] is not None
        if not in_place and not (has_history and kept == len(self._cached)):
            kept = 0  # a cache that a run returned is whole
        del self._cached[kept:]
        length = min(len(ids) + most, self.app["max_positions"] or len(ids) + most)
        if in_place:
            self._reserve(length)
        elif not kept:
            for name, empty in zip(self.app["cache"], self._caches, strict=True):
                self.binding.bind_cpu_input(f"past_key_values.{name}", empty)
        fresh, self.read = ids[kept:], len(ids) - kept
        if not self.needs_image:  # which starts with tokens that are not text
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
            "position_ids": self._position_ids(first, end),
        }
        feeds |= self._image_feeds(fresh)
        for name in [*self.app["inputs"], *self._feeds]:
            self.binding.bind_cpu_input(name, feeds[name])
        returned = [] if self.app["cache_in_place"] else self.app["cache"]
        for name in (*(f"present.{name}" for name in returned), "logits"):
            self.binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(self.binding)
        self._cached += self._keys[first:end] or fresh
        outputs = self.binding.get_outputs()
        for index, name in enumerate(returned):
            self.binding.bind_ortvalue_input(f"past_key_values.{name}", outputs[index])
        logits = np.asarray(outputs[-1].numpy()[0, -1])  # bound last
        if self.images and not self.needs_image:
            logits[self.app["images"]["token_id"]] = -np.inf  # it is not text
        return logits

    def _position_ids(self, first: int, end: int) -> np.ndarray:
        """Positions of tokens, ``(1, count)`` or ``(axes, 1, count)``."""
        known = self._positions
        positions = known[:, first:end]
        if first >= known.shape[1]:
            positions = np.full((len(known), 1), known.max() + 1 + first - known.shape[1])
        return positions if len(known) == 1 else positions[:, None]

    def _image_feeds(self, fresh: list[int]) -> dict[str, np.ndarray]:
        """What the decoder reads of images: all of one, or the last embeddings, of fresh tokens."""
        if self.images is None or self.needs_image:
            return self._feeds
        count = fresh.count(self.app["images"]["token_id"])
        return {name: rows[len(rows) - count :] for name, rows in self._feeds.items()}


def cut(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """Cut a text at a stop string, or at what may become one or is not yet a whole character."""
    places = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    if places:
        return text[: min(places)], True
    text = text.rstrip("\ufffd")
    parts = [stop[:size] for stop in stop_strings for size in range(1, len(stop))]
    pending = max((len(part) for part in parts if text.endswith(part)), default=0)
    return text[: len(text) - pending], False
