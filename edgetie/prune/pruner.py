"""Prune the vocabulary of a bundle: choose tokens, write the bundle, compare it with its source."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetie.bundle.atomic import atomic_directory, check_destination
from edgetie.bundle.bundle import Bundle, open_bundle
from edgetie.bundle.embedding_graphs import EMBED, write_embedding_graphs
from edgetie.bundle.manifest import describe_tensors, write_manifest
from edgetie.bundle.merged_decoder import MERGED, write_merged
from edgetie.bundle.model_config import read_json
from edgetie.bundle.names import DATA, ENCODER, MANIFEST
from edgetie.errors import PruneError, PruneMismatchError
from edgetie.graph.model_files import load_model, write_models
from edgetie.progress import Stages
from edgetie.prune.comparison import IntArray, compare_logits, require_tokens
from edgetie.prune.kept_text import TextCost, chat_tokens, chunks, read_texts, read_tokens
from edgetie.prune.languages import Characters, characters_of
from edgetie.prune.pruned_models import VocabularyModels
from edgetie.prune.token_settings import TokenSettings, renumber_signature, signature_tokens
from edgetie.prune.tokenizer_vocabulary import read_vocabulary
from edgetie.quantize.calibration.activations import builtin_tokens
from edgetie.runtime.memory import release_heap
from edgetie.runtime.text.tokenizer import TOKENIZER, Tokenizer
from edgetie.ties.groups import find_shared_ties, ties_of_file, verify_ties

KEPT_TOKENS = "kept_tokens.txt"
"""Old numbers of the tokens in the order of the new ones, one a line."""
_OTHER_VOCABULARIES = {"added_tokens.json", "merges.txt", "vocab.json", "vocab.txt"}
"""Files of Python tokenizers that hold the vocabulary again, left out as those of the endings."""
_OTHER_ENDINGS = {".model", ".spm"}
_ADDED = "added_tokens_decoder"
_HELD_OUT_SHARE, _HELD_OUT_WORDS = 10, 200


@dataclass(frozen=True)
class PruneReport:
    """What :func:`prune_vocabulary` did.

    Attributes:
        bundle: the bundle, opened.
        rows_before, rows_after: number of tokens, which is that of the table's rows.
        table_bytes_before, table_bytes_after: bytes of tables, heads and biases together.
        bytes_before, bytes_after: bytes of all files.
        text: tokens of the texts that are kept; ``None`` if there are none.
        unseen: tokens of the last tenth of the texts, if the first nine had been kept: what similar
            texts cost. ``None`` if they are shorter than 2,000 words.
        logits_error: largest difference of the logits of kept tokens, relative to the largest.
        seconds: time of each stage.
    """

    bundle: Bundle
    rows_before: int
    rows_after: int
    table_bytes_before: int
    table_bytes_after: int
    bytes_before: int
    bytes_after: int
    text: TextCost | None
    unseen: TextCost | None
    logits_error: float
    seconds: dict[str, float]


def prune_vocabulary(
    bundle: str | os.PathLike[str] | Bundle,
    output: str | os.PathLike[str],
    *,
    keep_text: Sequence[str | Path] = (),
    keep_tokens: Sequence[int | Path] = (),
    keep_languages: Sequence[str] = (),
    force: bool = False,
    progress: Stages | None = None,
) -> PruneReport:
    """Drop the tokens that a use never needs: rows of table and head, and the tokenizer's entries.

    Kept are the tokens of the texts, those that they are merged from, special and added tokens,
    those of bytes or single characters, of the chat template, of the settings, and of the text that
    :func:`quantize_model` calibrates on by default. Tokens get new numbers everywhere: graphs,
    tokenizer, configurations, manifest. Texts that are kept are encoded as before. Other texts
    still can be encoded, in more tokens.

    Args:
        bundle: an fp32 bundle.
        output: the directory to write; complete or not at all.
        keep_text: texts, or paths of text files in UTF-8, whose tokens are kept.
        keep_tokens: tokens, or paths of files with their numbers, separated by white space.
        keep_languages: codes of ISO 639 such as ``de``. Kept are all tokens of characters of the
            scripts they are written in, digits, punctuation and symbols. Needs Babel.
        force: replace an existing bundle.
        progress: told about each stage.

    Raises:
        PruneError: if there is nothing to keep, a file cannot be read, or the bundle cannot be
            pruned: it is quantized, or a node or the tokenizer is not understood.
        PruneMismatchError: if tokens or logits would differ.
        BundleError: if the bundle cannot be read, or ``output`` is in the way.
    """
    stages = progress or Stages()
    check_destination(output, force=force)
    source = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    _require_float_model(source)
    if not keep_text and not keep_tokens and not keep_languages:
        advice = {"keep_text": "FILE", "keep_tokens": "FILE", "keep_languages": "CODE"}
        raise PruneError("nothing to keep", advice=advice)
    stages.stage("read")
    texts = read_texts(keep_text)
    characters = characters_of(keep_languages) if keep_languages else None
    models = VocabularyModels(source)
    stages.stage("choose tokens")
    tokens = read_tokens(keep_tokens, models.rows)
    choice = _Choice(source, models, texts, tokens, characters)
    kept = choice.kept
    release_heap()  # a tokenizer of 250,000 tokens takes 500 MB
    bytes_before, table_bytes = source.file_bytes, models.table_bytes
    with atomic_directory(output, force=force) as directory:
        stages.stage("write")
        _write(source, models, choice, directory, stages)
        stages.stage("compare")
        text = choice.compare_tokens(directory)
        excerpts = choice.text_tokens if texts else np.array(kept, np.int32)
        error = compare_logits(source, directory, excerpts, kept)
    stages.finish()
    result = open_bundle(output)
    return PruneReport(
        bundle=result,
        rows_before=models.rows,
        rows_after=len(kept),
        table_bytes_before=table_bytes,
        table_bytes_after=models.table_bytes,
        bytes_before=bytes_before,
        bytes_after=result.file_bytes,
        text=text,
        unseen=choice.unseen,
        logits_error=error,
        seconds=dict(stages.seconds),
    )


def _require_float_model(bundle: Bundle) -> None:
    """Refuse a bundle that cannot be pruned, with what to do instead."""
    manifest = bundle.manifest
    if bundle.is_bare:
        raise PruneError(f"{bundle.path}: not a bundle; write one of it with tie_model")
    if bundle.has_fixed_shapes:
        raise PruneError(f"{bundle.directory}: has fixed shapes; prune first, then fix them")
    if manifest.quantization or manifest.precision != "fp32":
        raise PruneError(
            f"{bundle.directory}: is {manifest.precision}; prune the fp32 bundle and quantize it "
            "afterwards"
        )


class _Choice:
    """The tokens that are kept.

    Attributes:
        kept: their old numbers in the order of the new ones.
        numbers: new numbers by old ones.
        settings: finds tokens in settings.
        vocabulary: of the tokenizer; ``None`` if the bundle has none.
        text_tokens: tokens of the texts, in order.
        unseen: as in the report.
    """

    def __init__(
        self,
        source: Bundle,
        models: VocabularyModels,
        texts: Sequence[str],
        tokens: set[int],
        characters: Characters | None,
    ) -> None:
        directory = source.directory
        self._texts, self._rows = texts, models.rows
        self.settings = TokenSettings(models.rows)
        self.vocabulary = read_vocabulary(directory)
        tokenizer = Tokenizer.from_bundle(source) if self.vocabulary else None
        if (texts or characters) and self.vocabulary is None:
            raise PruneError(
                f"{directory}: has no {TOKENIZER}, so tokens of texts are not known",
                advice={"keep_tokens": "FILE"},
            )
        self._base = tokens | signature_tokens(source.manifest.signature) | models.constant_tokens()
        for path in _settings_files(source):
            self._base |= self.settings.required_tokens(read_json(path))
        if characters and self.vocabulary:
            self._base |= self.vocabulary.tokens_in(characters)
        self.text_tokens = np.array([], np.int32)
        self.unseen: TextCost | None = None
        if tokenizer is not None:
            self._base |= chat_tokens(tokenizer) | {*builtin_tokens(tokenizer)}
            parts = [np.array(tokenizer.encode(text), np.int32) for text in chunks(texts)]
            self.text_tokens = np.concatenate([self.text_tokens, *parts])
            self.unseen = self._held_out_cost(tokenizer)
        self.kept = self._complete(self.text_tokens)
        self.numbers = {old: new for new, old in enumerate(self.kept)}

    def _complete(self, text_tokens: IntArray) -> list[int]:
        """Add to the tokens of texts what is always kept, and sort."""
        tokens = {*np.unique(text_tokens).tolist(), *self._base}
        if self.vocabulary is not None:
            tokens = self.vocabulary.close(tokens | self.vocabulary.required)
        tokens = {token for token in tokens if token < self._rows}  # others have no row
        return sorted(tokens) if self.vocabulary is None else self.vocabulary.order(tokens)

    def compare_tokens(self, directory: Path) -> TextCost | None:
        """Check the written tokenizer: the number of each token, and the tokens of the texts."""
        if self.vocabulary is None:
            return None
        pruned = Tokenizer.from_bundle(open_bundle(directory))
        for text, old in self.vocabulary.ids.items():
            if pruned.backend.token_to_id(text) != self.numbers.get(old):
                raise PruneMismatchError(
                    f"{directory.name}/{TOKENIZER}: {text!r} would have another number than its "
                    "row; nothing was written"
                )
        if not self._texts:
            return None
        require_tokens(pruned, self._texts, self.text_tokens, self.kept)
        words = sum(len(text.split()) for text in self._texts)
        return TextCost(words, len(self.text_tokens), len(self.text_tokens))

    def _held_out_cost(self, tokenizer: Tokenizer) -> TextCost | None:
        """Measure what the last tenth of the texts costs if the others are kept."""
        import tokenizers

        tokens = self.text_tokens
        start = len(tokens) - len(tokens) // _HELD_OUT_SHARE
        text = tokenizer.decode(tokens[start:].tolist())
        words = len(text.split())
        if self.vocabulary is None or words < _HELD_OUT_WORDS:
            return None
        kept = self._complete(tokens[:start])
        contents = self.vocabulary.renumbered({old: new for new, old in enumerate(kept)})
        pruned = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(contents)), {}, None)
        return TextCost(words, len(tokenizer.encode(text)), len(pruned.encode(text)))


def _write(
    source: Bundle,
    models: VocabularyModels,
    choice: _Choice,
    directory: Path,
    stages: Stages,
) -> None:
    """Write the graphs, their ties verified, the other files and the manifest."""
    same, dropped = models.prune(choice.kept)
    write_models(models.models, directory, data=DATA, same=same, progress=stages)
    manifest = replace(source.manifest)
    for file in models.models:
        ties = ties_of_file(manifest.ties, file)
        verify_ties(load_model(directory / file), ties, where=f"the file {file}")
    parameters = [group.parameters for group in manifest.ties]
    manifest.ties = find_shared_ties(models.models, parameters)
    _write_settings(source, choice, directory)
    if (source.directory / EMBED).is_file():
        write_embedding_graphs(directory)
    elif (source.directory / MERGED).is_file():
        write_merged(directory)
    numbers = "".join(f"{token}\n" for token in choice.kept)
    (directory / KEPT_TOKENS).write_text(numbers, encoding="utf-8")
    *_, last = models.models.values()
    manifest.signature = replace(
        renumber_signature(manifest.signature, choice.numbers),
        vocab_size=models.columns,
        inputs=describe_tensors(last.graph.inputs),
        outputs=describe_tensors(last.graph.outputs),
    )
    if manifest.encoder is not None:
        graph = models.models[ENCODER].graph
        inputs, outputs = describe_tensors(graph.inputs), describe_tensors(graph.outputs)
        manifest.encoder = replace(manifest.encoder, inputs=inputs, outputs=outputs)
    manifest.unique_parameters -= dropped
    manifest.source = manifest.source | {"pruned_from_tokens": models.rows}
    write_manifest(directory, manifest)


def _settings_files(source: Bundle) -> list[Path]:
    """List the files of a bundle with settings in JSON."""
    others = {MANIFEST, TOKENIZER, *_OTHER_VOCABULARIES}
    return [p for p in source.files if p.suffix == ".json" and p.name not in others]


def _write_settings(source: Bundle, choice: _Choice, directory: Path) -> None:
    """Write the tokenizer and the settings with new numbers, and copy all other files."""
    settings = _settings_files(source)
    for path in source.files:
        target = directory / path.name
        if path in settings:
            contents = _renumbered(read_json(path), choice)
        elif path.name == TOKENIZER and choice.vocabulary is not None:
            contents = choice.vocabulary.renumbered(choice.numbers)
        else:
            is_other = path.name in _OTHER_VOCABULARIES or path.suffix in _OTHER_ENDINGS
            if not is_other and path.suffix != ".onnx" and path.name not in (DATA, MANIFEST):
                shutil.copyfile(path, target)
            continue
        indent = None if path.name == TOKENIZER else 1
        text = json.dumps(contents, ensure_ascii=False, indent=indent)
        target.write_text(f"{text}\n", encoding="utf-8")


def _renumbered(settings: Mapping[str, Any], choice: _Choice) -> dict[str, Any]:
    result: dict[str, Any] = choice.settings.renumber(settings, choice.numbers)
    if isinstance(added := result.get(_ADDED), dict):
        numbers = {str(old): str(new) for old, new in choice.numbers.items()}
        result[_ADDED] = {numbers[key]: value for key, value in added.items() if key in numbers}
    return result
