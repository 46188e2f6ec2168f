"""Speech models: sound in, text out; a real Whisper on real speech, and small random others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
import torch
import transformers
from click.testing import CliRunner
from ctranslate2_files import write_whisper
from packages import speech_clips, whisper
from wav_files import write_wav

from edgetie.bundle.bundle import open_bundle
from edgetie.errors import AudioError, BundleError, EdgetieError, SourceError
from edgetie.export.exporter import ExportReport, export_model
from edgetie.harness.accuracy.check import check_model
from edgetie.harness.latency.bench import bench_model
from edgetie.quantize.calibration.synthetic_audio import synthetic_voice
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.audio.features import FeatureExtractor, read_wav
from edgetie.runtime.audio.transcription import transcribe
from edgetie.runtime.decoding.text_generation import generate_text
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie.ties.groups import equal_initializers, find_shared_ties

pytestmark = pytest.mark.slow

RATE, VOCABULARY = 16000, 512
START, END, TIMELESS, ENGLISH, GERMAN, TASK = 500, 501, 511, 503, 504, 505
SPECIAL = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END,
           "decoder_start_token_id": START}  # fmt: skip
NEVER, NOT_FIRST = list(range(40, 120)), list(range(120, 200))
HALF = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Whisper": {"d_model": 64, "num_mel_bins": 16, "max_source_positions": 50,
                "max_target_positions": 64, "suppress_tokens": None,
                "begin_suppress_tokens": None, **HALF},
    "Moonshine": {"hidden_size": 64, "intermediate_size": 128, "encoder_num_hidden_layers": 2,
                  "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
                  "decoder_num_attention_heads": 4},
    "Speech2Text": {"d_model": 64, "conv_channels": 64, "input_feat_per_channel": 20,
                    "max_source_positions": 300, "max_target_positions": 64,
                    "pad_token_id": 1, **HALF},
}  # fmt: skip


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return synthetic_voice(np.random.default_rng(seed), seconds, RATE)


def small(kind: str) -> Any:
    """A random model whose tokens depend on what it hears."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, **{**SPECIAL, **CONFIGS[kind]}
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "decoder." in name:
                parameter.normal_(std=1.0 if "encoder_attn" in name else 0.3)
    return model


def save(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    words = {f" w{index}": index for index in range(VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, " w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(directory)


@pytest.fixture(scope="module")
def audio_embeddings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ExportReport]:
    """A small Whisper of two languages, with tokens that it must not say; and its bundle."""
    directory = tmp_path_factory.mktemp("whisper")
    model = small("Whisper")
    settings = {
        **SPECIAL,
        "lang_to_id": {"<|en|>": ENGLISH, "<|de|>": GERMAN},
        "task_to_id": {"transcribe": TASK},
        "no_timestamps_token_id": TIMELESS,
        "is_multilingual": True,
        "forced_decoder_ids": [[1, None], [2, TASK]],
        "suppress_tokens": NEVER,
        "begin_suppress_tokens": NOT_FIRST,
        "max_length": 64,
    }
    model.generation_config = transformers.GenerationConfig(**settings)
    save(model, directory)
    transformers.WhisperFeatureExtractor(16, chunk_length=1).save_pretrained(directory)
    return model, export_model(str(directory), directory / "fp32")


def extractor(directory: Path) -> Any:
    return transformers.AutoFeatureExtractor.from_pretrained(directory)


def said(bundle: Path, samples: np.ndarray, **options: Any) -> list[int]:
    """The tokens of a clip, without the last that ends it."""
    session = open_session(bundle)
    *_, last = transcribe(session, Tokenizer.from_bundle(session.bundle), samples, **options)
    assert last.completion is not None
    return [token for token in last.completion.tokens if token != END]


def test_one_table_in_the_files(audio_embeddings: tuple[Any, ExportReport]) -> None:
    report = audio_embeddings[1]
    assert report.manifest.task == "speech-seq2seq"
    assert report.agreement.relative < 1e-5
    (table,) = (group for group in report.manifest.ties if group.shape[0] == VOCABULARY)
    assert len(table.uses) == 2
    for path in report.bundle.model_paths:
        assert not equal_initializers(ir.load(path))
    assert report.weights_bytes < 1.01 * report.unique_parameter_bytes
    encoder = report.manifest.encoder
    assert encoder is not None
    assert [(i.name, i.shape) for i in encoder.inputs] == [
        ("input_features", ("batch_size", 16, 100))
    ]
    assert "encoder_attention_mask" not in {i.name for i in report.manifest.signature.inputs}


@pytest.mark.parametrize("language", [None, "de"])
def test_tokens_are_those_of_torch(
    audio_embeddings: tuple[Any, ExportReport], language: str | None
) -> None:
    model, report = audio_embeddings
    different = set()
    for seed in range(4):
        samples = sound(0.9, seed)
        features = extractor(report.bundle.directory)(
            samples, sampling_rate=RATE, return_tensors="pt"
        ).input_features
        with torch.no_grad():
            whole = model.generate(features, language=language)[0].tolist()
        expected = [token for token in whole if token != END]
        tokens = said(report.bundle.directory, samples, language=language)
        assert tokens == expected
        assert not {*NEVER} & {*tokens}
        assert tokens[0] not in NOT_FIRST
        different.add(tuple(tokens))
    assert len(different) > 1


def test_int8_keeps_the_tie(audio_embeddings: tuple[Any, ExportReport], tmp_path: Path) -> None:
    _, report = audio_embeddings
    made = quantize_model(report.bundle, tmp_path / "int8")
    (table,) = (group for group in made.manifest.ties if group.shape[0] == VOCABULARY)
    assert table.dtype == "UINT8"
    assert {use.op_type for use in table.uses} == {"GatherBlockQuantized", "MatMulNBits"}
    assert "4 clips of a synthetic voice" in made.manifest.quantization["calibration"]
    models = {path.name: ir.load(path) for path in made.bundle.model_paths}
    assert find_shared_ties(models, [tuple(table.parameters)])
    assert said(made.bundle.directory, sound(0.9), max_new_tokens=1) == said(
        report.bundle.directory, sound(0.9), max_new_tokens=1
    )


def test_check_and_bench_hear_noise(
    audio_embeddings: tuple[Any, ExportReport], tmp_path: Path
) -> None:
    bundle = audio_embeddings[1].bundle
    quantize_model(bundle, tmp_path / "int8")
    fp32 = str(bundle.directory)
    report = check_model(tmp_path / "int8", fp32, max_tokens=64, greedy_prompts=2, greedy_tokens=4)
    assert "after noise" in report.data
    assert report.top1_agreement > 0.7  # its random attention is all or nothing
    assert report.max_abs_error > 0
    assert np.isnan(report.perplexity)
    assert check_model(fp32, fp32, max_tokens=64, greedy_prompts=1).passed
    with pytest.raises(SourceError, match="is an audio model; compare a bundle of it with another"):
        check_model(fp32, str(bundle.directory.parent))
    speed = bench_model(bundle.directory, prompt_tokens=8, new_tokens=4, repeat=1)
    assert speed.encode_ms is not None
    assert speed.encode_ms > 0
    assert speed.prompt_tokens == len(audio_embeddings[1].manifest.signature.start_token_ids)
    assert len(speed.runs[0].step_ms) == 3


def test_a_waveform_is_read_as_it_is(tmp_path: Path) -> None:
    model = small("Moonshine")
    model.generation_config.max_length = 40
    save(model, tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path)
    report = export_model(str(tmp_path), tmp_path / "fp32")
    assert report.manifest.encoder is not None
    assert report.manifest.encoder.inputs[0].name == "input_values"
    for seconds in (0.5, 1.3):
        samples = sound(seconds)
        values = extractor(tmp_path)(samples, sampling_rate=RATE, return_tensors="pt").input_values
        with torch.no_grad():
            expected = model.generate(values)[0].tolist()
        assert said(report.bundle.directory, samples, max_new_tokens=39) == [
            token for token in expected[1:] if token != END
        ]


def test_features_of_another_kind_are_refused(tmp_path: Path) -> None:
    save(small("Speech2Text"), tmp_path)
    report = export_model(str(tmp_path), tmp_path / "fp32")
    assert report.agreement.relative < 1e-5
    with pytest.raises(BundleError, match="not a log-mel spectrogram"):
        FeatureExtractor.from_bundle(report.bundle)
    made = quantize_model(report.bundle, tmp_path / "int8")
    assert "random features" in made.manifest.quantization["calibration"]


def test_an_encoder_of_its_own_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 128}  # fmt: skip
    config = transformers.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.Wav2Vec2Config(
            **sizes, conv_dim=(32, 32), conv_kernel=(10, 3), conv_stride=(5, 2),
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_feat_extract_layers=2,
        ),
        transformers.BertConfig(**{**sizes, "hidden_size": 32}, vocab_size=VOCABULARY),
        **SPECIAL,
    )  # fmt: skip
    model = transformers.SpeechEncoderDecoderModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "decoder." in name:
                parameter.normal_(std=1.0 if "crossattention" in name else 0.3)
    save(model, tmp_path)
    report = export_model(str(tmp_path), tmp_path / "fp32")
    assert report.agreement.relative < 1e-5
    assert len(report.manifest.ties[0].uses) == 2
    assert report.manifest.encoder is not None
    assert report.manifest.encoder.inputs[0].name == "input_values"
    samples = sound(0.3)
    with torch.no_grad():
        expected = model.generate(torch.from_numpy(samples)[None], max_new_tokens=12)[0].tolist()
    tokens = said(report.bundle.directory, samples, max_new_tokens=12)
    assert tokens == [token for token in expected[1:] if token != END]


def test_a_tie_of_which_one_use_is_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Pop2PianoConfig(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
    )
    transformers.Pop2PianoForConditionalGeneration(config).save_pretrained(tmp_path)
    report = export_model(str(tmp_path), tmp_path / "fp32")
    assert report.agreement.relative < 1e-4
    models = [ir.load(path) for path in report.bundle.model_paths]
    tables = [name for model in models for name in model.graph.initializers if "embed_tok" in name
              or name == "shared.weight"]  # fmt: skip
    assert len(tables) == 1
    assert not any(equal_initializers(model, tables) for model in models[1:])
    with pytest.raises(BundleError, match="not a log-mel spectrogram"):
        FeatureExtractor.from_bundle(report.bundle)


def test_bad_sounds(audio_embeddings: tuple[Any, ExportReport]) -> None:
    bundle = audio_embeddings[1].bundle.directory
    with pytest.raises(AudioError, match=r"1\.5 s long, the model accepts 1 s"):
        said(bundle, sound(1.5))
    with pytest.raises(AudioError, match="finite"):
        said(bundle, np.full(100, np.nan, np.float32))
    with pytest.raises(EdgetieError, match="the model has de, en"):
        said(bundle, sound(0.5), language="fr")
    session = open_session(bundle)
    with pytest.raises(BundleError, match="reads audio"):
        next(generate_text(session, Tokenizer.from_bundle(session.bundle), [[1]], max_new_tokens=1))


def test_command(audio_embeddings: tuple[Any, ExportReport], tmp_path: Path) -> None:
    from edgetie_cli.generate import command

    bundle = audio_embeddings[1].bundle.directory
    clip = str(write_wav(tmp_path / "clip.wav", sound(0.9)))
    tokens = said(bundle, read_wav(clip), max_new_tokens=5)
    options = [str(bundle), "--audio", clip, "--max-new-tokens", "5"]
    done = CliRunner().invoke(command, [*options, "--quiet"])
    assert done.output == " ".join(f"w{token}" for token in tokens) + "\n"
    both = json.loads(CliRunner().invoke(command, [*options, "--audio", clip, "--json"]).stdout)
    assert [each["tokens"][:5] for each in both["completions"]] == [tokens, tokens]
    for bad in (["--prompt", "Hello"], [], ["--audio", clip, "--prompt", "a"]):
        assert CliRunner().invoke(command, [str(bundle), *bad]).exit_code == 2


def test_tiny_whisper_on_real_speech(tmp_path: Path) -> None:
    clips = speech_clips()
    if clips is None:
        pytest.skip("the Debian package with speech cannot be downloaded here")
    write_whisper(whisper(), tmp_path / "whisper")
    report = export_model(str(tmp_path / "whisper"), tmp_path / "fp32")
    assert report.weights_bytes < 1.01 * report.unique_parameter_bytes
    assert [len(group.uses) for group in report.manifest.ties] == [2]
    quantize_model(report.bundle, tmp_path / "int8")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "whisper")
    features = extractor(tmp_path / "whisper")(
        [read_wav(clip) for clip in clips], sampling_rate=RATE, return_tensors="pt"
    ).input_features
    with torch.no_grad():
        expected = model.eval().generate(features)
    tokenizer = Tokenizer.from_bundle(open_bundle(tmp_path / "int8"))
    texts = [tokenizer.decode(row) for row in expected.tolist()]
    assert len(texts) == 5
    assert texts[4] == " He might even have been made amiable himself."
    for precision in ("fp32", "int8"):
        session = open_session(tmp_path / precision)
        found = [
            "".join(chunk.text for chunk in transcribe(session, tokenizer, read_wav(clip)))
            for clip in clips
        ]
        assert found == texts
