"""The repository checks its own taste. Each failure says what to do."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import streams
import streams.kafka

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for path in (ROOT / "streams").rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py"))
FILES = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"}
FOLDERS = {"streams", "schemas", "docker", "tests"}
LONGEST_MODULE = 400
LONGEST_FUNCTION = {"streams": 60, "tests": 80}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in MODULES:
        yield _name(path), ast.parse(path.read_text())


def _order(package: ModuleType = streams) -> dict[str, int]:
    """Return the places of modules and packages in the reading order that a package's docstring gives."""
    names = re.findall(r"(?m)^ {2,8}([a-z_]+)(?:\.py|/)? ", package.__doc__ or "")
    return {name: place for place, name in enumerate(names)}


def test_the_top_level_holds_what_was_agreed_and_nothing_else() -> None:
    top = {line.split("/")[0] for line in _tracked()}
    assert {name for name in top if not name.startswith(".")} <= FILES | FOLDERS


def test_only_the_kafka_edge_imports_faust_or_aiokafka() -> None:
    for name, tree in _trees():
        if name.startswith("streams/kafka/"):
            continue
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in imported:
                assert module.split(".")[0] not in ("faust", "aiokafka", "mode"), f"{name}: move it to streams/kafka/"


def test_a_module_imports_only_modules_above_it_in_the_reading_order() -> None:
    order = _order()
    assert len(order) > 15, "the reading order in streams/__init__.py could not be read"
    for name, tree in _trees():
        part = name.removeprefix("streams/").split("/")[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        assert part in order, f"{name}: give it its place in the reading order of streams/__init__.py"
        for node in _top_imports(tree):
            other = node.split(".")[1]
            if other != part:
                assert order[other] < order[part], f"{name} imports streams.{other}, which comes after it"


def test_so_it_is_in_the_kafka_edge() -> None:
    order, prefix = _order(streams.kafka), "streams.kafka."
    modules = {Path(name).stem: tree for name, tree in _trees() if name.startswith("streams/kafka/")}
    assert order.keys() == modules.keys() - {"__init__"}
    for part in order:
        for node in _top_imports(modules[part]):
            if node.startswith(prefix):
                assert order[node.removeprefix(prefix)] < order[part], f"kafka/{part}.py imports {node}, after it"


def _top_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streams."):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES + TESTS, ids=_name)
def test_modules_and_functions_are_short(path: Path) -> None:
    if path in MODULES:
        assert len(path.read_text().splitlines()) <= LONGEST_MODULE, "split it where a reader would take a breath"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            longest = LONGEST_FUNCTION[path.relative_to(ROOT).parts[0]]
            assert length <= longest, f"{node.name} has {length} lines: give its parts names"


def test_public_names_are_listed_and_there() -> None:
    for name, tree in _trees():
        if name.endswith(("__main__.py", "kafka/__init__.py", "worker.py")):
            continue
        lists = [
            node for node in tree.body
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
        ]  # fmt: skip
        assert lists, f"{name}: say in __all__ what others may use"


def test_nothing_is_left_to_do_later() -> None:
    for path in MODULES:
        assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", path.read_text()), _name(path)


def test_no_module_has_a_name_that_says_nothing() -> None:
    for path in MODULES + TESTS:
        assert path.stem not in ("utils", "util", "common", "helpers", "base", "manager", "types", "misc"), _name(path)


def test_no_machine_is_named() -> None:
    home = re.compile(rb"/(" + b"|".join((b"wo" + b"rk", b"fa" + b"rm", b"ro" + b"ot", b"ho" + b"me")) + rb")/")
    for name in _tracked():
        path = ROOT / name
        if path.suffix not in (".gz", ".png") and path.is_file():
            assert not home.search(path.read_bytes()), f"{name}: a path of somebody's machine"


def test_every_test_that_can_be_skipped_says_why() -> None:
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.skip", "pytest.mark.skip"):
                assert node.args or node.keywords, f"{_name(path)}:{node.lineno}: say why"
