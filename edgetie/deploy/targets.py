"""What a model can be deployed for: a table; each row has a folder of its name in ``templates``."""

from __future__ import annotations

from dataclasses import dataclass

_ANY = ("fp32", "int8", "int8-aliased", "int8-mapped", "int8-mapped-table", "int8-plain",
        "int8-dynamic", "int8-static", "int4", "int4-all")  # fmt: skip


@dataclass(frozen=True)
class DeployTarget:
    """Where an app runs.

    Attributes:
        name: as in ``--for python``.
        words: what the folder holds.
        schemes: rows of :data:`edgetie.targets.SCHEMES`, or ``fp32``, that run there, the best
            first.
        quantize: row of :data:`edgetie.targets.TARGETS` that makes the best.
        start: commands that start it.
        checked: how far it was seen to work.
        tables: whether the starter reads ``tokenizer.bin`` (:mod:`edgetie.deploy.tokens`) instead
            of ``tokenizer.json``.
        shared: more folders of ``templates`` that it is made of.
        header: whether what it must know of the model is a C header instead of JSON.
        ort_format: whether the starter reads a model as ``.ort`` too.
        mobile: whether its README says what mobile execution providers would take.
    """

    name: str
    words: str
    schemes: tuple[str, ...]
    quantize: str
    start: tuple[str, ...]
    checked: str
    shared: tuple[str, ...] = ()
    tables: bool = False
    header: bool = False
    ort_format: bool = False
    mobile: bool = False


_RUN = "run by edgetie's tests; its tokens are those of edgetie generate"

DEPLOY_TARGETS = {
    row.name: row
    for row in (
        DeployTarget(
            "python",
            "one file on onnxruntime, tokenizers and numpy",
            _ANY,
            "cpu",
            ("pip install -r requirements.txt", 'python app.py "What is the capital of France?"'),
            _RUN,
            ort_format=True,
        ),
        DeployTarget(
            "c",
            "one C program on ONNX Runtime's C API, tokenizer included",
            _ANY,
            "cpu",
            ("make ORT=path/to/onnxruntime", './app "What is the capital of France?"'),
            _RUN,
            tables=True,
            shared=("native",),
            header=True,
            ort_format=True,
        ),
        DeployTarget(
            "node",
            "one program on onnxruntime-node and Hugging Face's tokenizer",
            _ANY,
            "cpu",
            (
                "ONNXRUNTIME_NODE_INSTALL=skip npm install",
                'node app.mjs "What is the capital of France?"',
            ),
            _RUN,
            shared=("javascript",),
        ),
        DeployTarget(
            "web",
            "a page on onnxruntime-web",
            ("int8-plain", "int8-mapped", "int8-dynamic", "fp32"),
            "web",
            ("npm install", "node serve.mjs"),
            _RUN,
            shared=("javascript",),
        ),
    )
}
