"""Constrain answers to a JSON schema, a grammar or a choice: tokens that cannot follow are masked.

The extra ``grammar`` installs llguidance, which computes the masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetie.errors import ConstraintError, EdgetieError, summarize
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As ``json.dumps`` writes. Where any white space is allowed, small models write it without end."""

_EXCERPT = re.compile(r"^\s*(\d+ \|.*|\^+)\s*$", re.MULTILINE)


class Constraint:
    """What an answer must be: JSON of a schema, a text of a grammar, or one of several texts.

    It serves any number of answers of models with the tokenizer. An answer that ends before
    ``max_new_tokens`` always meets it. One whose ``stop_reason`` is ``length`` is incomplete.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer) -> None:
        """Compile a grammar in llguidance's own format, see the methods for others.

        Raises:
            ConstraintError: if llguidance is not installed, the grammar is invalid or too complex,
                or llguidance does not support the tokenizer.
        """
        self._tokenizer = _load(tokenizer)
        limits = _library().LLParserLimits(verbose_errors=False)
        matcher = _library().LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        self._matcher: LLMatcher = matcher
        _require_no_error(self._matcher)

    @staticmethod
    def json_schema(schema: Mapping[str, Any], tokenizer: Tokenizer) -> Constraint:
        """Constrain an answer to JSON that a schema describes.

        The JSON is on one line, and properties have the order of the schema.

        Args:
            schema: a JSON schema, such as pydantic's ``model_json_schema()``.
            tokenizer: of the model.

        Raises:
            ConstraintError: as the class, and if the schema has keywords that llguidance lacks.
        """
        if not isinstance(schema, Mapping):
            raise ConstraintError(f"a JSON schema is an object, not a {type(schema).__name__}")
        matcher = _library().LLMatcher
        try:
            text = json.dumps(schema, allow_nan=False)
            grammar = matcher.grammar_from_json_schema(text, defaults=_JSON_STYLE)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConstraintError(f"not a JSON schema ({summarize(error)}); correct it") from error
        return Constraint(grammar, tokenizer)

    @staticmethod
    def grammar(text: str, tokenizer: Tokenizer) -> Constraint:
        """Constrain an answer to the texts of a context-free grammar.

        Args:
            text: the grammar in the format of Lark, with the rule ``start``, or in GBNF, the format
                of llama.cpp, with the rule ``root``.
            tokenizer: of the model.

        Raises:
            ConstraintError: as the class.
        """
        convert = _library().grammar_from
        try:
            grammar = convert("grammar", text)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"not a grammar ({_one_line(str(error))}); correct it") from error
        return Constraint(grammar, tokenizer)

    @staticmethod
    def choices(texts: Sequence[str], tokenizer: Tokenizer) -> Constraint:
        """Constrain an answer to one of several texts.

        Args:
            texts: one or more, none of them empty.
            tokenizer: of the model.

        Raises:
            ConstraintError: as the class, and if a text is empty or there is none.
        """
        if isinstance(texts, str) or not texts or not all(texts):
            raise ConstraintError("must be a list of texts that are not empty", parameter="choices")
        options = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        grammar = _library().LLMatcher.grammar_from_lark(f"start: {options}")
        return Constraint(grammar, tokenizer)

    def start(self, batch: int, stop_token_ids: Sequence[int]) -> ConstrainedBatch:
        """Start as many answers, which the stop tokens can end if they are complete."""
        matchers = [self._matcher.deep_copy() for _ in range(batch)]
        return ConstrainedBatch(matchers, stop_token_ids, self._tokenizer.eos_token)


class ConstrainedBatch:
    """The answers of a batch as they grow, each within the constraint."""

    def __init__(
        self, matchers: Sequence[LLMatcher], stop_token_ids: Sequence[int], end: int
    ) -> None:
        """Store the matchers; ``end`` is the token that llguidance allows after the answer."""
        self._matchers = matchers
        self._stops = list(stop_token_ids)
        self._end = end

    def mask(self, logits: NDArray[np.float32], active: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Exclude the tokens that cannot follow.

        Args:
            logits: ``(batch, vocabulary)``.
            active: ``(batch,)``, sequences that have not ended; the others stay as they are.

        Returns:
            A copy of ``logits``, -inf for excluded tokens. Stop tokens remain if the answer is
            complete.

        Raises:
            ConstraintError: if no token is left, or the grammar needs too much memory or time.
        """
        logits = logits.copy()
        for index, matcher in enumerate(self._matchers):
            if not active[index]:
                continue
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            _require_no_error(matcher)
            flags = np.unpackbits(bits, bitorder="little")
            flags[self._end] = False
            allowed = np.zeros(logits.shape[-1], np.bool_)  # models round their size up
            allowed[: len(flags)] = flags[: len(allowed)]
            allowed[[stop for stop in self._stops if stop < len(allowed)]] = matcher.is_accepting()
            logits[index, ~allowed] = -np.inf
            if logits[index].max() == -np.inf:
                raise ConstraintError(
                    "the model has no token that can follow; its tokenizer cannot spell the answer"
                )
        return logits

    def add(self, tokens: NDArray[np.int64], active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Add a token to each active sequence; returns ``(batch,)``, those that nothing can follow.

        Raises:
            ConstraintError: if the grammar needs too much memory or time.
        """
        complete = np.zeros_like(active)
        for index, matcher in enumerate(self._matchers):
            if active[index]:
                matcher.consume_token(int(tokens[index]))
                _require_no_error(matcher)
                complete[index] = matcher.is_stopped()
        return complete


def require_one_end(stop_strings: Sequence[str], constraint: Constraint | None) -> None:
    """Refuse stop strings with a constraint: they would cut an answer that must be whole."""
    if stop_strings and constraint is not None:
        raise EdgetieError(
            "would cut an answer that has a constraint; give only one of both",
            parameter="stop_strings",
        )


def _library() -> Any:
    """Import llguidance when it is needed, as it is an extra."""
    try:
        import llguidance
    except ImportError as error:
        raise ConstraintError(
            "constraints need llguidance; install it with: pip install llguidance, or in the "
            'checkout of edgetie: pip install ".[grammar]"'
        ) from error
    return llguidance


@lru_cache(maxsize=1)
def _load(tokenizer: Tokenizer) -> LLTokenizer:
    """Load a tokenizer into llguidance; the last one stays, as large ones take a second.

    It needs an end of text that is not text: any special token. Answers end with the model's own.
    """
    added = tokenizer.backend.get_added_tokens_decoder()
    end = next((token for token, settings in added.items() if settings.special), None)
    if end is None:
        raise ConstraintError(
            f"{TOKENIZER}: has no special token; add the one that ends the model's texts"
        )
    try:
        return _library().LLTokenizer(tokenizer.backend.to_str(), eos_token=end)
    except ValueError as error:
        raise ConstraintError(
            f"{TOKENIZER}: llguidance does not support this tokenizer ({_one_line(str(error))}); "
            "generate without a constraint"
        ) from error


def _require_no_error(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise ConstraintError(
            f"llguidance cannot apply it ({_one_line(matcher.get_error())}); change the constraint"
        )


def _one_line(message: str) -> str:
    """Shorten a message of the library, without the excerpt of the grammar."""
    return " ".join(_EXCERPT.sub("", message).split())[:300]
