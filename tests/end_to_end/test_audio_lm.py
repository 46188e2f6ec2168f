"""Language models that hear: small random ones, held against transformers."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
import torch
import transformers
from click.testing import CliRunner

from edgetie.bundle.names import AUDIO, ENCODER
from edgetie.errors import BundleError, EdgetieError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.latency.bench import bench_model
from edgetie.quantize.calibration.synthetic_audio import synthetic_voice
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.audio.embeddings import embed_audio
from edgetie.runtime.audio.transcription import transcribe
from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.generation import continue_prompt, generate
from edgetie.runtime.decoding.sampling import Sampling
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie.ties.groups import equal_initializers

pytestmark = pytest.mark.slow

RATE, VOCABULARY, HEARD = 16000, 512, 500
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "head_dim": 16}  # fmt: skip
TEXT = {**SIZES, "vocab_size": VOCABULARY, "num_key_value_heads": 2}
AUDIO_SIZES = {**SIZES, "num_mel_bins": 20, "num_key_value_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "GlmAsr": {
        "audio_config": {"model_type": "glmasr_encoder", **AUDIO_SIZES, "intermediate_size": 256},
        "text_config": {"model_type": "llama", **TEXT},
    },
    "Qwen3ASR": {
        "audio_config": {"model_type": "qwen3_asr_encoder", "d_model": 64, "encoder_layers": 2,
                         "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 20,
                         "n_window_infer": 200, "output_dim": 64, "downsample_hidden_size": 16},
        "text_config": {"model_type": "qwen3", **TEXT},
    },
    "VoxtralRealtime": {
        "audio_config": {**AUDIO_SIZES, "sliding_window": 8},
        "text_config": {**TEXT, "sliding_window": 8},
    },
}  # fmt: skip


def small(kind: str) -> Any:
    """A random model whose tokens depend on what it hears."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        audio_token_id=HEARD, tie_word_embeddings=True, **CONFIGS[kind]
    )
    if kind == "VoxtralRealtime":
        del config.audio_token_id
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "language_model" in name:
                parameter.normal_(std=0.2)
            elif name.endswith("linear_2.weight"):
                parameter.normal_(std=0.5)
    return model


def save(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    words = {f"w{index}": index for index in range(VOCABULARY)}
    words["<sound>"] = words.pop(f"w{HEARD}")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = (
        "w1 {% for part in messages[0].content %}"
        "{{ '<sound> ' if part.type == 'audio' else part.text }}{% endfor %} w2 w3"
    )
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="module", params=["GlmAsr", "Qwen3ASR"])
def audio_embeddings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, ExportReport]:
    """A small model, its feature extractor, and its bundle."""
    directory = tmp_path_factory.mktemp(request.param)
    model = small(request.param)
    save(model, directory)
    kind = "Whisper" if request.param == "GlmAsr" else request.param
    extractor = getattr(transformers, f"{kind}FeatureExtractor")(20, chunk_length=2)
    extractor.save_pretrained(directory)
    return model, extractor, export_model(str(directory), directory / "fp32")


def sound(seconds: float) -> np.ndarray:
    return synthetic_voice(np.random.default_rng(3), seconds, RATE)


def features(extractor: Any, samples: np.ndarray) -> dict[str, torch.Tensor]:
    padding = {} if "Whisper" in type(extractor).__name__ else {"padding": "longest"}
    found = extractor(
        samples, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt", **padding
    )
    mask = found["attention_mask"].long()
    return {"input_features": found["input_features"], "input_features_mask": mask}


def test_one_table_in_the_decoder(audio_embeddings: tuple[Any, Any, ExportReport]) -> None:
    model, _, report = audio_embeddings
    assert report.manifest.task == "audio-lm"
    assert report.manifest.signature.audio_token_id == HEARD
    assert report.agreement.relative < 1e-5
    assert report.manifest.fusion["operators"]["GroupQueryAttention"] == 2
    (table,) = (group for group in report.manifest.ties if group.shape[0] == VOCABULARY)
    assert sorted(use.op_type for use in table.uses) == ["Gather", "Gemm"]
    assert {use.file for use in table.uses} == {"decoder_model.onnx"}
    assert not any(equal_initializers(ir.load(path)) for path in report.bundle.model_paths)
    assert report.weights_bytes < 1.02 * report.unique_parameter_bytes + 4096
    assert model.get_input_embeddings().weight is model.lm_head.weight


@pytest.mark.parametrize("seconds", [0.6, 1.0, 1.9])
def test_rows_are_those_of_torch(
    audio_embeddings: tuple[Any, Any, ExportReport], seconds: float
) -> None:
    model, extractor, report = audio_embeddings
    given = features(extractor, sound(seconds))
    with torch.no_grad():
        expected = model.get_audio_features(**given, return_dict=True).pooler_output.numpy()
    session = open_session(report.bundle)
    rows = embed_audio(session, {name: value.numpy() for name, value in given.items()})
    assert rows.shape == expected.shape
    assert np.abs(rows - expected).max() < 1e-4 * np.abs(expected).max()


def test_tokens_are_those_of_torch(audio_embeddings: tuple[Any, Any, ExportReport]) -> None:
    model, extractor, report = audio_embeddings
    session = open_session(report.bundle)
    tokenizer = Tokenizer.from_bundle(session.bundle)
    different = set()
    for seconds in (0.6, 1.9):
        samples = sound(seconds)
        *_, last = transcribe(session, tokenizer, samples, max_new_tokens=8)
        assert last.completion is not None
        given = features(extractor, samples)
        with torch.no_grad():
            count = len(model.get_audio_features(**given, return_dict=True).pooler_output)
            ids = torch.tensor([[1, *[HEARD] * count, 2, 3]])
            expected = model.generate(input_ids=ids, **given, max_new_tokens=8, do_sample=False)
        assert last.completion.prompt_tokens == ids.shape[1]
        assert last.completion.tokens == expected[0, ids.shape[1] :].tolist()
        different.add(tuple(last.completion.tokens))
    assert len(different) == 2


def test_command(audio_embeddings: tuple[Any, Any, ExportReport], tmp_path: Path) -> None:
    from edgetie_cli.generate import command

    clip, bundle = tmp_path / "clip.wav", str(audio_embeddings[2].bundle.directory)
    with wave.open(str(clip), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((sound(1) * 32767).astype("<i2").tobytes())
    options = [bundle, "--audio", str(clip), "--max-new-tokens", "5", "--json"]
    done = CliRunner().invoke(command, options)
    assert len(json.loads(done.stdout)["tokens"]) == 5
    asked = CliRunner().invoke(command, [bundle, "--audio", str(clip), "--language", "en"])
    assert "has no language by name" in str(asked.exception)


def test_text_alone_and_two_at_once(audio_embeddings: tuple[Any, Any, ExportReport]) -> None:
    model, _, report = audio_embeddings
    session = open_session(report.bundle)
    prompts = [[5, 6, 7, 8], [9, 10]]
    steps = list(generate(session, prompts, max_new_tokens=5, stop_token_ids=frozenset()))
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            whole = model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=5, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
        assert [int(step.tokens[row]) for step in steps] == whole[0, len(prompt) :].tolist()


def test_int8_keeps_the_tie(
    audio_embeddings: tuple[Any, Any, ExportReport], tmp_path: Path
) -> None:
    report = audio_embeddings[2]
    made = quantize_model(report.bundle, tmp_path / "int8")
    (table,) = (group for group in made.manifest.ties if group.shape[0] == VOCABULARY)
    assert table.dtype == "UINT8"
    assert {use.op_type for use in table.uses} == {"GatherBlockQuantized", "MatMulNBits"}
    assert "clips of a synthetic voice" in made.manifest.quantization["calibration"]
    assert "cannot run" not in str(made.manifest.quantization)
    accuracy = check_model(
        made.bundle, str(report.bundle.directory), max_tokens=64, greedy_prompts=1, greedy_tokens=4
    )
    assert "after noise" in accuracy.data
    assert 0 < accuracy.relative_error < 0.2
    assert accuracy.top1_agreement > 0.7


def test_bench_hears_noise(audio_embeddings: tuple[Any, Any, ExportReport]) -> None:
    speed = bench_model(
        audio_embeddings[2].bundle.directory, prompt_tokens=8, new_tokens=4, repeat=1
    )
    assert speed.encode_ms is not None
    assert speed.encode_ms > 0
    assert speed.prompt_tokens > 8


def test_a_prompt_without_a_place(audio_embeddings: tuple[Any, Any, ExportReport]) -> None:
    session = open_session(audio_embeddings[2].bundle)
    tokenizer = Tokenizer.from_bundle(session.bundle)
    template = tokenizer.chat_template
    for other, error in ((None, BundleError), (f"{template} <sound>", EdgetieError)):
        tokenizer.chat_template = other
        with pytest.raises(error, match=r"one place|2 times"):
            next(transcribe(session, tokenizer, sound(1)))


def test_the_place_of_a_sound_is_never_said(
    audio_embeddings: tuple[Any, Any, ExportReport],
) -> None:
    session = open_session(audio_embeddings[2].bundle)
    with pytest.raises(EdgetieError, match=f"token {HEARD} .*stands for audio"):
        next(generate(session, [[5, HEARD, 6]], max_new_tokens=2))
    with pytest.raises(EdgetieError, match="max_new_tokens=0: must"):
        next(transcribe(session, Tokenizer.from_bundle(session.bundle), sound(1), max_new_tokens=0))
    decoder = Decoder(session, 1, 8)
    logits = decoder.prefill(np.array([[5, 6]]))
    logits[0, HEARD] = 1e4
    steps = list(continue_prompt(decoder, logits, 3, Sampling(), None, (), frozenset()))
    assert len(steps) == 3
    assert steps[0].tokens[0] != HEARD


def test_sound_added_to_every_token(tmp_path: Path) -> None:
    model = small("VoxtralRealtime")
    model.save_pretrained(tmp_path)
    report = export_model(str(tmp_path), tmp_path / "fp32")
    assert report.agreement.relative < 1e-5
    assert report.manifest.signature.audio_token_id is None
    random = np.random.default_rng(0)
    clip = random.standard_normal((1, 20, 160), np.float32)
    session = open_session(report.bundle)
    rows = embed_audio(session, {"input_features": clip})
    decoder = Decoder(session, 1, rows.shape[1])
    logits = decoder.prefill(np.array([[1, 4, 4, 4]]), audio_embeddings=rows)
    tokens = []
    while decoder.length < decoder.max_length:
        tokens.append(int(logits[0].argmax()))
        logits = decoder.step(np.array(tokens[-1:]))
    tokens.append(int(logits[0].argmax()))
    with torch.no_grad():
        whole = model(
            input_ids=torch.tensor([[1, 4, 4, 4, *tokens[:-1]]]),
            input_features=torch.from_numpy(clip),
        ).logits[0]
    assert tokens == whole[3:].argmax(-1).tolist()
    inputs = [value.name for value in ir.load(report.bundle.model_path).graph.inputs]
    assert AUDIO in inputs
    assert report.bundle.model_paths[0].name == ENCODER
