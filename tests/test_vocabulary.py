"""Each public class of the package has a name of its own."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import neulig_ray

PACKAGE = Path(neulig_ray.__file__).parent


def public_classes(node: ast.AST) -> Iterator[str]:
    """Names of the public classes below a node, but for those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield child.name
        yield from public_classes(child)


def test_no_two_public_classes_have_one_name() -> None:
    files = defaultdict[str, list[str]](list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for name in public_classes(ast.parse(file.read_text(encoding="utf-8"))):
            files[name].append(file.relative_to(PACKAGE).as_posix())
    assert not {name: found for name, found in files.items() if len(found) > 1}


def test_what_counts_as_a_public_class() -> None:
    text = """
class A(NamedTuple): ...
class _B: ...
def f():
    class C: ...
if True:
    class D:
        class E: ...
"""
    assert list(public_classes(ast.parse(text))) == ["A", "D", "E"]
