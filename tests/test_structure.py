"""The house in figures: rooms, imports, tests, functions, words of messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "edgetie"
FLOORS = (
    {"errors", "progress", "downloads", "targets"},
    {"graph", "kernels"},
    {"ties", "providers"},
    {"bundle"},
    {"runtime", "sources", "passes"},
    {"harness", "npu", "deploy"},
    {"quantize", "prune", "assemble", "repair"},
    {"export"},
    {"quickstart", "report"},
)
"""Rooms from the lowest floor up: a room imports rooms of its own floor or a lower one."""

WITHOUT_TESTS = {
    "bundle/names.py": "constants only",
    "graph/constants.py": "constants only",
}
"""Modules without a test file, and why."""

FOREIGN_WORDS = {
    "beside", "behind", "elsewhere", "chosen", "taken", "given", "made", "found", "told", "said",
    "settle", "settled", "site", "sites", "mixture", "switched", "finer", "gram", "twin", "twins",
    "turned", "hear", "hears", "heard", "sound", "sounds", "clips", "silence", "unflatten", "noise",
    "questions", "boundaries", "codes", "forms", "pieces",
}  # fmt: skip
"""Words that names do not contain: docs/glossary.md has the field's own."""


def modules() -> list[Path]:
    return [
        path for path in sorted(LIBRARY.rglob("*.py"))
        if "templates" not in path.parts and path.name != "__init__.py"
    ]  # fmt: skip


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """``(module, name)`` of every import of the library, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            module = node.module or ""
            yield from ((module, alias.name) for alias in node.names if module[:8] == "edgetie.")


def file_of(module: str, name: str) -> Path:
    """The file that ``from module import name`` reads."""
    below = ROOT.joinpath(*module.split("."))
    candidates = (below / f"{name}.py", below.with_suffix(".py"), below / "__init__.py")
    return next(path for path in candidates if path.is_file())


def room(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_every_module_has_a_test() -> None:
    missing = {
        str(path.relative_to(LIBRARY)) for path in modules()
        if not (ROOT / "tests" / path.relative_to(LIBRARY)).with_name(f"test_{path.name}").is_file()
    }  # fmt: skip
    assert missing == set(WITHOUT_TESTS)


def test_no_import_runs_back_up() -> None:
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    upward = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules()
        for module, name in imports(path)
        if floor[room(file_of(module, name))] > floor[room(path)]
    ]
    assert upward == []


def test_no_imports_run_in_a_circle() -> None:
    graph = {path: {file_of(*item) for item in imports(path)} - {path} for path in modules()}
    while True:
        leaves = {path for path, used in graph.items() if not used & graph.keys()}
        if not leaves:
            break
        graph = {path: used for path, used in graph.items() if path not in leaves}
    assert sorted(str(path.relative_to(ROOT)) for path in graph) == []


def test_no_private_module_or_name_is_imported_from_another_folder() -> None:
    private = [
        f"{path.relative_to(ROOT)} imports {module}.{name}"
        for path in modules()
        for module, name in imports(path)
        if name.startswith("_") or any(part.startswith("_") for part in module.split("."))
    ]
    assert private == []


@pytest.mark.parametrize(
    "folder", [LIBRARY, *(path.parent for path in sorted(LIBRARY.rglob("__init__.py")))],
    ids=lambda folder: str(folder.relative_to(ROOT)),
)  # fmt: skip
def test_a_folder_is_small_and_says_what_it_holds(folder: Path) -> None:
    count = sum(path.parent == folder for path in modules())
    assert count <= 10 or folder.name == "passes"
    statement = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert statement


def test_functions_are_short() -> None:
    long = []
    for name, node in functions():
        documented = ast.get_docstring(node) is not None
        body = node.body[documented:]
        lines = {
            line for part in body for inner in ast.walk(part) if hasattr(inner, "lineno")
            for line in range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)
        }  # fmt: skip
        if len(lines) > 60:
            long.append(f"{name}: {len(lines)} lines")
    assert long == []


def test_functions_have_few_parameters() -> None:
    stub = (LIBRARY / "__init__.pyi").read_text(encoding="utf-8")
    public = {line.split()[-1] for line in stub.splitlines() if line}
    many = []
    for name, node in functions():
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        if count > 8 and node.name not in public:
            many.append(f"{name}: {count}")
    assert many == []


def test_messages_of_the_library_name_no_options() -> None:
    options = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value[:60]}"
        for path in modules()
        for raised in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(raised, ast.Raise)
        for node in ast.walk(raised)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "--" in node.value
    ]
    assert options == []


def test_readme_is_two_screens() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1100


def test_glossary_is_short() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("| ") for line in lines) - 2 <= 40


def test_names_are_the_terms_of_the_field() -> None:
    foreign = set()
    for path in [*modules(), *sorted((ROOT / "cli").rglob("*.py"))]:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
            words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", token.string).lower().split("_")
            if token.type == tokenize.NAME and FOREIGN_WORDS.intersection(words):
                foreign.add(f"{path.relative_to(ROOT)}: {token.string}")
    assert sorted(foreign) == []


def test_files_that_the_docs_name_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"`((?:edgetie|docs|benchmarks|tests)/[\w/.]+\.\w+)`", text))
    assert named
    assert sorted(path for path in named if not (ROOT / path).is_file()) == []
