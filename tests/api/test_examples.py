"""Every public function has an example, and the examples do what they show."""

import doctest
import inspect
import shutil
from pathlib import Path

import pytest

import neulig_ray as nl

FUNCTIONS = [name for name in nl.__all__ if inspect.isfunction(getattr(nl, name))]
OF_A_STORAGE = ("load_experts", "load_ligand", "read_results", "run")


def run_example(name: str) -> None:
    function = getattr(nl, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples, f"{name} has no example"
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert not failed, f"the example of {name}; above is what it gave"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in OF_A_STORAGE])
def test_the_example_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_example(name)


@pytest.mark.ray
def test_the_examples_of_a_storage_work(
    smallest_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder like a user's: ./experiments, and a storage where all but the end of a run is done."""
    shutil.copytree(smallest_storage, tmp_path / "neulig-storage")
    shutil.copytree(Path(__file__).parents[2] / "experiments", tmp_path / "experiments")
    shutil.rmtree(tmp_path / "neulig-storage/smallest")
    monkeypatch.chdir(tmp_path)
    run_example("run")
    assert (tmp_path / "smallest.html").stat().st_size > 10_000
    for name in OF_A_STORAGE:
        run_example(name)
