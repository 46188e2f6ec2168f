"""A table of what a model can be deployed for; each row has a folder in ``templates``."""

from __future__ import annotations

from dataclasses import dataclass

from edgetie.targets import SCHEMES

RUNTIME = "1.24.1"
"""The oldest ONNX Runtime with all operators of these schemes."""


@dataclass(frozen=True)
class DeployTarget:
    """Where an app runs.

    Attributes:
        name: such as ``python``.
        quantize: row of :data:`edgetie.targets.TARGETS` whose scheme suits it best.
        start: commands that start it.
        checked: how it is tested.
        tables: whether the starter reads ``tokenizer.bin`` (:mod:`tokenizer_tables`) instead
            of ``tokenizer.json``.
        shared: more folders of ``templates`` that it consists of.
        native: folder for C code.
        assets: folder for ``model/``.
        header: whether its settings are a C header instead of JSON.
        ort_format: whether the starter also reads a model as ``.ort``.
        mobile: the phone's execution provider; the README says what it would run.
    """

    name: str
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
        """The schemes that run there, and ``fp32``."""
        return ("fp32", *(name for name, spec in SCHEMES.items() if self.name in spec.deploy))


_RUN = "run by edgetie's tests; its tokens are those of edgetie generate"

DEPLOY_TARGETS = {
    spec.name: spec
    for spec in (
        DeployTarget(
            "python",
            "cpu",
            ("pip install -r requirements.txt", 'python app.py "What is the capital of France?"'),
            _RUN,
            ort_format=True,
        ),
        DeployTarget(
            "c",
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
            "web",
            ("npm install", "node serve.mjs"),
            _RUN,
            shared=("javascript",),
        ),
        DeployTarget(
            "android",
            "mobile-cpu",
            ("gradle installDebug",),
            "the C and Kotlin of the model are built by edgetie's tests with this CMakeLists.txt, "
            "and run in a desktop's Java VM, where their tokens are those of edgetie "
            "generate; only the syntax of MainActivity.kt is checked; Gradle's files and a device "
            "are not tested",
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
            "mobile-cpu",
            ("xcodegen", "pod install", "open Starter.xcworkspace"),
            "the C is run by edgetie's tests on Linux, and compiled for Apple's processors against "
            "macOS's headers; only the syntax of the Swift is checked; Xcode and a device are "
            "not tested",
            shared=("native",),
            native="Native",
            tables=True,
            header=True,
            ort_format=True,
            mobile="CoreML",
        ),
    )
}
