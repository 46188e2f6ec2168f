"""What a model can be deployed for: a table; each row has a folder of its name in ``templates``."""

from __future__ import annotations

from dataclasses import dataclass

from edgetie.targets import SCHEMES

RUNTIME = "1.24.1"
"""The oldest ONNX Runtime with all operators of these schemes."""


@dataclass(frozen=True)
class DeployTarget:
    """Where an app runs.

    Attributes:
        name: as in ``--for python``.
        words: what the folder holds.
        quantize: row of :data:`edgetie.targets.TARGETS` whose scheme suits it best.
        start: commands that start it.
        checked: how far it was seen to work.
        tables: whether the starter reads ``tokenizer.bin`` (:mod:`tokenizer_tables`) instead
            of ``tokenizer.json``.
        shared: more folders of ``templates`` that it is made of.
        native: where in the folder C code goes.
        assets: where in the folder ``model/`` is.
        header: whether what it must know of the model is a C header instead of JSON.
        ort_format: whether the starter reads a model as ``.ort`` too.
        mobile: the execution provider of its phones, of which its README says what it would take.
    """

    name: str
    words: str
    quantize: str
    start: tuple[str, ...]
    checked: str
    shared: tuple[str, ...] = ()
    native: str = "."
    assets: str = "."
    tables: bool = False
    header: bool = False
    ort_format: bool = False
    mobile: str = ""

    @property
    def schemes(self) -> tuple[str, ...]:
        """Return the schemes that run there, and ``fp32``."""
        return ("fp32", *(name for name, row in SCHEMES.items() if self.name in row.deploy))


_RUN = "run by edgetie's tests; its tokens are those of edgetie generate"

DEPLOY_TARGETS = {
    row.name: row
    for row in (
        DeployTarget(
            "python",
            "one file on onnxruntime, tokenizers and numpy",
            "cpu",
            ("pip install -r requirements.txt", 'python app.py "What is the capital of France?"'),
            _RUN,
            ort_format=True,
        ),
        DeployTarget(
            "c",
            "one C program on ONNX Runtime's C API, tokenizer included",
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
            "web",
            ("npm install", "node serve.mjs"),
            _RUN,
            shared=("javascript",),
        ),
        DeployTarget(
            "android",
            "an app in Kotlin over the same C, on onnxruntime-android",
            "mobile-cpu",
            ("gradle installDebug",),
            "the C and Kotlin of the model are built by edgetie's tests with this CMakeLists.txt, "
            "and run on a desktop's Java machine, where their tokens are those of edgetie "
            "generate; MainActivity.kt is checked for its syntax, Gradle's files and a device "
            "were not at hand",
            shared=("native",),
            native="app/src/main/cpp",
            assets="app/src/main/assets",
            tables=True,
            header=True,
            ort_format=True,
            mobile="NNAPI",
        ),
        DeployTarget(
            "ios",
            "an app in Swift over the same C, on the pod onnxruntime-c",
            "mobile-cpu",
            ("xcodegen", "pod install", "open Starter.xcworkspace"),
            "the C is run by edgetie's tests on Linux, and compiled for Apple's processors against "
            "macOS's headers; the Swift is checked for its syntax; Xcode and a device were not at "
            "hand",
            shared=("native",),
            native="Native",
            tables=True,
            header=True,
            ort_format=True,
            mobile="CoreML",
        ),
    )
}
