"""Other people's runtimes read a bundle as it stands, and give the same greedy tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime_genai as og
import pytest
from adapter_models import ADAPTERS, IDS, AdaptedBundle
from seq2seq_models import make
from starters import run

from edgetie.bundle.bundle import open_bundle
from edgetie.export.exporter import export_model
from edgetie.prune.pruner import prune_vocabulary
from edgetie.quantize.quantizer import quantize_model
from edgetie.runtime.decoding.generation import generate
from edgetie.runtime.session import open_session
from edgetie.runtime.text.tokenizer import Tokenizer
from edgetie.sources.source import Source

pytestmark = pytest.mark.slow

TOKENS = 64
PROMPT = "Tell me a long story about a fox and a river."
SOURCE = [5, 6, 7, 8, 9, 10, 1]
SCRIPTS = Path(__file__).parents[1] / "support"


@pytest.fixture(params=["real_bundle", "real_int8", "real_pruned", "real_pruned_int8"])
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def prompt(bundle: Path) -> list[int]:
    tokenizer = Tokenizer.from_bundle(open_bundle(bundle))
    text = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}])
    return tokenizer.encode(text, add_special_tokens=False)


def ours(bundle: Path) -> list[int]:
    session = open_session(bundle, provider="cpu", threads=2)
    steps = generate(session, [prompt(bundle)], max_new_tokens=TOKENS)
    tokens = [int(step.tokens[0]) for step in steps]
    assert len(tokens) == TOKENS
    return tokens


def test_onnxruntime_genai(bundle: Path) -> None:
    ids = prompt(bundle)
    model = og.Model(str(bundle))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + TOKENS, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    theirs: list[int] = []
    while not generator.is_done() and len(theirs) < TOKENS:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert theirs == ours(bundle)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnxruntime_genai_with_adapters(
    adapted_bundle: AdaptedBundle, tmp_path: Path, precision: str
) -> None:
    directory = adapted_bundle.directory
    if precision == "int8":
        directory = quantize_model(directory, tmp_path / "int8").bundle.directory
    session = open_session(directory, provider="cpu", threads=2)
    model = og.Model(str(directory))
    adapters = og.Adapters(model)
    for name in ADAPTERS:
        adapters.load(str(directory / f"{name}.onnx_adapter"), name)
    texts = []
    for name in (None, *ADAPTERS):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(IDS) + 16, do_sample=False)
        generator = og.Generator(model, params)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(IDS)
        theirs: list[int] = []
        while not generator.is_done() and len(theirs) < 16:
            generator.generate_next_token()
            theirs.append(int(generator.get_next_tokens()[0]))
        session.use_adapter(name)
        steps = generate(session, [IDS], max_new_tokens=16)
        assert theirs == [int(step.tokens[0]) for step in steps]
        texts.append(theirs)
    assert len(set(map(tuple, texts))) == 3


def test_optimum(bundle: Path, optimum: Path) -> None:
    command = [sys.executable, SCRIPTS / "optimum_model.py", bundle, PROMPT, TOKENS]
    found = run(command, optimum, PYTHONPATH=str(optimum))
    assert json.loads(found) == ours(bundle)


def test_transformers_js(bundle: Path, node: Path) -> None:
    command = ["node", SCRIPTS / "transformers_js.mjs", node, bundle, PROMPT, TOKENS]
    assert json.loads(run(command, node.parent)) == ours(bundle)


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small encoder-decoder models in fp32 and int8, and with fewer tokens."""
    root = tmp_path_factory.mktemp("translators")

    def get(kind: str) -> Path:
        if not (root / kind).is_dir():
            model = make(kind)
            source = Source("transformers", kind, model, model.config, model.config.save_pretrained)
            export_model(source, root / kind / "fp32")
            quantize_model(root / kind / "fp32", root / kind / "int8")
            prune_vocabulary(
                root / kind / "fp32", root / kind / "pruned", keep_tokens=range(9, 300)
            )
        return root / kind

    return get


@pytest.mark.parametrize("precision", ["fp32", "int8", "pruned"])
@pytest.mark.parametrize("kind", ["T5", "Bart", "Marian"])
def test_encoder_decoder_models(
    kind: str, precision: str, translators: Callable[[str], Path], optimum: Path, node: Path
) -> None:
    """In optimum and transformers.js; past the last token, which some models are made to end at."""
    bundle = translators(kind) / precision
    data = (bundle / "model.onnx.data").stat().st_size
    assert bundle.joinpath("decoder_model_merged.onnx").stat().st_size < data / 2
    session = open_session(bundle, provider="cpu")
    steps = generate(session, [SOURCE], max_new_tokens=32, stop_token_ids=frozenset())
    tokens = [int(step.tokens[0]) for step in steps]
    told = [bundle, 33, json.dumps(SOURCE)]
    found = run(
        [sys.executable, SCRIPTS / "optimum_seq2seq.py", *told], optimum, PYTHONPATH=str(optimum)
    )
    assert json.loads(found)[1:33] == tokens
    found = run(["node", SCRIPTS / "seq2seq_js.mjs", node, *told], node.parent)
    assert json.loads(found)[1:33] == tokens
