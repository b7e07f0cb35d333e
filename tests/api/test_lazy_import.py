"""`import neulig_ray` is light, and says what it offers."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import neulig_ray as nl

HEAVY = ("torch", "ray", "pandas", "numpy", "open_clip", "mlflow", "matplotlib", "pyarrow", "sklearn", "rich")
LIGHT = ("Experiment", "Cluster", "Evaluation", "Finetune", "Ligand", "Pretrain", "Search", "InputError")


def imported(script: str) -> set[str]:
    script += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_the_import_takes_a_fraction_of_a_second() -> None:
    """Processor time beyond the interpreter's own, the least of three: a busy machine does not fail it."""

    def spent(script: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(spent("import neulig_ray") - spent("") for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", [None, *LIGHT])
def test_nothing_heavy_is_imported_before_it_is_needed(name: str | None) -> None:
    script = "import neulig_ray as nl; dir(nl)" + (f"; nl.{name}" if name else "")
    assert not imported(script) & set(HEAVY)


def test_merging_needs_neither_ray_nor_mlflow_nor_a_table() -> None:
    script = (
        "import neulig_ray as nl, torch; nl.merge('average', [{'w': torch.ones(1)}, {'w': torch.zeros(1)}])"
    )
    assert not imported(script) & {"ray", "mlflow", "pandas", "open_clip", "matplotlib"}


def test_every_name_is_there_and_listed() -> None:
    for name in nl.__all__:
        assert getattr(nl, name).__name__ == name
        assert name in dir(nl)
        assert getattr(nl, name).__doc__
    assert sorted(nl.__all__) == list(nl.__all__)


def test_editors_see_the_names_that_there_are() -> None:
    """What is imported for type checkers is what is found at run time, from the same modules."""
    tree = ast.parse(Path(str(nl.__file__)).read_text(encoding="utf-8"))
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == list(nl.__all__)
    for name, module in seen.items():
        assert getattr(nl, name).__module__ == module, name
    assert (Path(str(nl.__file__)).parent / "py.typed").exists()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'neulig_ray' has no attribute 'mrege'"):
        nl.mrege  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(nl, "np")
