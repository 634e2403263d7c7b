"""Rules about the source itself: sizes that fit the eye, no code from data, a docstring in every module."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kvmanager", "compute", "gateway", "proto/holdfast", "tools", "benchmarks", "models")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py") if "_pb2" not in p.name)
SERVICE = [
    path
    for path in SOURCES
    if path.relative_to(ROOT).parts[0] in ("kvmanager", "compute", "gateway", "proto")
]

CODE_FROM_DATA = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "multiprocessing",
}
CALLS = {"eval", "exec", "compile", "__import__", "recv_pyobj", "send_pyobj"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    return ((path, ast.parse(path.read_text("utf8"))) for path in SOURCES)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_have_at_most_300_lines() -> None:
    sizes = {path.name: path.read_text("utf8").count("\n") for path in SERVICE}
    assert {name: size for name, size in sizes.items() if size > 300} == {}


def test_half_of_all_functions_have_at_most_10_lines() -> None:
    lengths = [length(node) for _, tree in trees() for node in functions(tree)]
    assert statistics.median(lengths) <= 10


def test_no_function_outside_the_kernels_is_over_50_lines() -> None:
    long = [
        f"{path.name}:{node.name}"
        for path, tree in trees()
        for node in functions(tree)
        if length(node) > 50 and "kernels" not in path.parts
    ]
    assert long == []


def test_every_module_says_what_it_owns() -> None:
    assert [path.name for path, tree in trees() if tree.body and not ast.get_docstring(tree)] == []


def test_nothing_builds_code_or_objects_from_data() -> None:
    """No pickle in any of its forms, no eval: the road of a dozen CVEs in inference servers."""
    found = [f"{path.name}:{what}" for path, tree in trees() for what in forbidden(tree)]
    assert found == []


def forbidden(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in CODE_FROM_DATA)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in CODE_FROM_DATA:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            yield from forbidden_call(node)


def forbidden_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in CALLS or name.split(".")[-1] in ("recv_pyobj", "send_pyobj"):
        yield name
    if name in ("torch.load", "yaml.load"):
        yield name
    if any(keyword.arg in ("shell", "allow_pickle") for keyword in node.keywords):
        yield f"{name}(shell= or allow_pickle=)"


@pytest.mark.parametrize(
    "snippet",
    ["import pickle", "from marshal import loads", "eval('1')", "torch.load(p)", "run(x, shell=True)"],
)
def test_the_check_above_can_fail(snippet: str) -> None:
    assert list(forbidden(ast.parse(snippet)))


def test_nothing_is_left_unfinished() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    assert [path.name for path in SOURCES if words.search(path.read_text("utf8"))] == []
