"""A table of what a model can be deployed for; each has a folder in ``templates``."""

from dataclasses import dataclass
from typing import Literal

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
        shared: another folder of ``templates`` that it consists of; empty if there is none.
        native: folder for C code.
        assets: folder for ``model/``.
        kernels: folder for the C code of edgetie's execution provider; empty if it runs without.
        library: what an app in C opens to load the provider.
        mobile: the phone's execution provider; the README says what it would run.
        reads_images: whether it also runs models that read images.
    """

    name: str
    quantize: str
    start: tuple[str, ...]
    checked: str
    shared: Literal["native", "javascript", ""] = ""
    native: str = "."
    assets: str = "."
    kernels: str = ""
    library: str = "libedgetie_kernels.so"
    mobile: str = ""
    reads_images: bool = False

    @property
    def in_c(self) -> bool:
        """Whether it reads ``app.h`` and ``tokenizer.bin`` instead of JSON files."""
        return self.shared == "native"

    @property
    def ort_format(self) -> bool:
        """Whether the starter also reads a model as ``.ort``."""
        return self.shared != "javascript"

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that run there, and ``fp32``."""
        return ("fp32", *(name for name, spec in SCHEMES.items() if self.name in spec.deploy))


_RUN = "run by edgetie's tests; its tokens are those of edgetie generate"
_QUESTION = '"What is the capital of France?"'

DEPLOY_TARGETS = {
    spec.name: spec
    for spec in (
        DeployTarget(
            "python",
            "cpu",
            ("pip install -r requirements.txt", f"python app.py {_QUESTION}"),
            _RUN,
            kernels="kernels",
            reads_images=True,
        ),
        DeployTarget(
            "c",
            "cpu",
            ("make ORT=path/to/onnxruntime", f"./app {_QUESTION}"),
            _RUN,
            "native",
            kernels="kernels",
            reads_images=True,
        ),
        DeployTarget(
            "node",
            "cpu",
            ("ONNXRUNTIME_NODE_INSTALL=skip npm install", f"node app.mjs {_QUESTION}"),
            _RUN,
            "javascript",
        ),
        DeployTarget(
            "web",
            "web",
            ("npm install", "npm run vendor", "node serve.mjs"),
            _RUN,
            "javascript",
            reads_images=True,
        ),
        DeployTarget(
            "android",
            "mobile-cpu",
            ("gradle installDebug",),
            "the C, edgetie's execution provider included, and Kotlin of the model are built by "
            "edgetie's tests with this CMakeLists.txt, and run in a desktop's Java VM, where their "
            "tokens are those of edgetie generate; only the syntax of MainActivity.kt is checked; "
            "Gradle's files and a device are not tested",
            shared="native",
            native="app/src/main/cpp",
            assets="app/src/main/assets",
            kernels="app/src/main/cpp/kernels",
            mobile="NNAPI",
        ),
        DeployTarget(
            "ios",
            "mobile-cpu",
            ("xcodegen", "open Starter.xcodeproj"),
            "the C, edgetie's execution provider included, is run by edgetie's tests on Linux, and "
            "compiled for Apple's processors against macOS's headers; only the syntax of the Swift "
            "is checked; Xcode and a device are not tested",
            shared="native",
            native="Native",
            kernels="Kernels",
            library="@rpath/edgetie_kernels.framework/edgetie_kernels",
            mobile="CoreML",
        ),
    )
}
