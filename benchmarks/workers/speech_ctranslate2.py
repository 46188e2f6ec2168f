"""CTranslate2: its Whisper, greedy, with the features that transformers computes."""

from __future__ import annotations

from pathlib import Path

import ctranslate2  # type: ignore[import-not-found, unused-ignore]
from _speech import RATE, Samples, Transcribe, main
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor

PROMPT = ["<|startoftranscript|>", "<|notimestamps|>"]


def open_model(path: Path, threads: int) -> Transcribe:
    model = ctranslate2.models.Whisper(
        str(path), device="cpu", inter_threads=1, intra_threads=threads
    )
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    extract = WhisperFeatureExtractor()

    def write_down(samples: Samples) -> str:
        features = extract(samples, sampling_rate=RATE, return_tensors="np").input_features
        storage = ctranslate2.StorageView.from_array(features)
        (result,) = model.generate(storage, [PROMPT], beam_size=1)
        text: str = tokenizer.decode(result.sequences_ids[0])
        return text

    return write_down


main(open_model)
