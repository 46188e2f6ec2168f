"""Talk with a chat model, turn by turn; each turn reads only the tokens that are new."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np

from edgetie.errors import BundleError, EdgetieError
from edgetie.runtime.decoding.constraint import Constraint, require_one_end
from edgetie.runtime.decoding.generation import (
    GREEDY,
    Step,
    continue_prompt,
    make_decoder,
    require_limits,
)
from edgetie.runtime.decoding.prompt_cache import PromptCache
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.decoding.text_generation import Chunk, stream_text
from edgetie.runtime.session import Session
from edgetie.runtime.text.tokenizer import Tokenizer

_MOST_TOKENS = 4096
"""Longest conversation, unless the model takes less. Memory is used only as far as it grows."""


class Conversation:
    """A conversation with a decoder that has a chat template.

    Every answer is the one that the model gives to all messages as one prompt.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` each, of the turns that were answered.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        """Start with the system message, if there is one.

        Args:
            session: an opened decoder.
            tokenizer: of the same model.
            system: the system message.
            prompt_cache: a file with what comes before the first question, the system message.

        Raises:
            BundleError: if the model is not a decoder, or has no chat template.
        """
        if tokenizer.chat_template is None:
            raise BundleError(
                f"{session.bundle.directory}: has no chat template, so it holds no conversation; "
                "give it a prompt to continue"
            )
        if session.cross:
            raise BundleError(
                f"{session.bundle.directory}: has an encoder, which reads one prompt; use generate"
            )
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self._tokenizer, self._prompt_cache = tokenizer, prompt_cache
        self._directory = session.bundle.directory
        self._decoder = make_decoder(session, 1, 1, _MOST_TOKENS - 1)
        self._tokens: list[int] = []  # of which the decoder has read the first ones

    def ask(
        self,
        text: str,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop_strings: Sequence[str] = (),
        constraint: Constraint | None = None,
        seed: int | None = None,
    ) -> Iterator[Chunk]:
        """Stream the answer to a message. One that is not read to its end is forgotten.

        Args:
            text: the message of the user.
            max_new_tokens, sampling, stop_strings, constraint, seed: as in
                :func:`edgetie.generate_text`.

        Returns:
            Text as it comes. The completion's ``prompt_tokens`` are those that were new.

        Raises:
            BundleError: if the chat template refuses the messages, ONNX Runtime fails, or the
                prompt cache cannot be used.
            ConstraintError: if the constraint cannot be met.
            EdgetieError: if the conversation has become too long for the model.
        """
        require_limits(max_new_tokens, seed)
        require_one_end(stop_strings, constraint)
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self._tokenizer.chat_prompt(messages)
        ids = self._tokenizer.encode(prompt, add_special_tokens=False)
        if len(ids) > self._decoder.max_length:
            raise EdgetieError(
                f"{self._directory}: the conversation has {len(ids)} tokens, and there is room for "
                f"{self._decoder.max_length}; start a new one"
            )
        read = self._tokens[: self._decoder.length]
        self._decoder.rewind(_count_common(read, ids[:-1]))  # an answer may have other tokens now
        self._tokens = list(ids)
        new = ids[self._decoder.length :]
        cache = None if self._decoder.length else self._prompt_cache
        steps = self._generate(new, max_new_tokens, sampling, constraint, seed)
        for chunk in stream_text(steps, self._tokenizer, [len(new)], stop_strings, cache):
            if chunk.completion is not None:
                answer = {"role": "assistant", "content": chunk.completion.text}
                self.messages = [*messages, answer]
            yield chunk

    def _generate(
        self,
        new: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        constraint: Constraint | None,
        seed: int | None,
    ) -> Iterator[Step]:
        if self._prompt_cache is None or self._decoder.length:
            logits = self._decoder.prefill(np.array([new], np.int64))
        else:
            logits = self._prompt_cache.prefill(self._decoder, new, self._count_beginning(new))
        prompts = [list(self._tokens)]
        for step in continue_prompt(
            self._decoder, logits, max_new_tokens, sampling, seed, prompts, constraint=constraint
        ):
            self._tokens.append(int(step.tokens[0]))
            yield step

    def _count_beginning(self, ids: list[int]) -> int:
        """Count the tokens that come before the first question, whatever it is."""
        system = [message for message in self.messages[:1] if message["role"] == "system"]
        prompts = [ids]
        for question in ("a", "1"):
            prompt = self._tokenizer.chat_prompt([*system, {"role": "user", "content": question}])
            prompts.append(self._tokenizer.encode(prompt, add_special_tokens=False))
        return _count_common(*prompts)


def _count_common(*sequences: list[int]) -> int:
    """Count the tokens that all sequences begin with."""
    tokens = zip(*sequences, strict=False)  # the shortest ends them
    return sum(1 for _ in takewhile(lambda each: len(set(each)) == 1, tokens))
