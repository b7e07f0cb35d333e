"""Every golden file is tested or waits for its method; a collection is looked for where it is named."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import golden
import pytest
from golden import SHARED, WAITING, Golden, check_equal, kept_names, matches, shared_names
from golden_files import KEPT, NO_FILE, TESTS, VARIABLE, collection


def patterns_of_tests() -> set[str]:
    """The patterns of all calls of `goldens` in the tests."""
    found = set()
    for file in TESTS.rglob("test_golden_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="goldens"), args=patterns):
                    found.update(ast.literal_eval(pattern) for pattern in patterns)
    return found


def test_every_file_is_either_tested_or_waiting() -> None:
    """A new one is entered in WAITING, or its test asks `goldens` for it."""
    tested = patterns_of_tests()
    names = {*kept_names(), *shared_names()}
    assert sorted(name for name in names if matches(name, tested) == matches(name, WAITING)) == []


def test_nothing_waits_that_is_kept() -> None:
    assert [name for name in kept_names() if matches(name, WAITING)] == []


if SHARED is not None:

    @pytest.mark.parametrize("name", sorted({*kept_names()} & {*shared_names()}))
    def test_a_kept_file_is_the_shared_one(name: str) -> None:
        kept, shared = Golden(name, KEPT), Golden(name, SHARED)
        assert kept.about == shared.about
        check_equal(kept.tensors, shared.tensors)


def ids(parameters: object) -> list[str]:
    assert isinstance(parameters, list)
    return [parameter.id for parameter in parameters]


def test_without_a_collection_there_are_the_kept_files_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "SHARED", None)
    assert ids(golden.goldens("iso_c_*")) == [
        f"kept-{name}" for name in kept_names() if name.startswith("iso_c_")
    ]
    (none,) = golden.goldens("*_slerp_*")
    assert [mark.name for mark in none.marks] == [NO_FILE]


def test_a_collections_files_come_after_the_kept_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("iso_c_n9_s9", "mergekit_slerp_t5", "zipit_n2"):
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr(golden, "SHARED", tmp_path)
    assert ids(golden.goldens("iso_c_*"))[-1] == "shared-iso_c_n9_s9"
    assert ids(golden.goldens("*_slerp_*")) == ["shared-mergekit_slerp_t5"]


def test_a_pattern_that_nothing_is_called_by_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match=r"iso_d_"):
        golden.goldens("iso_d_*")


def test_the_variable_names_the_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert collection() == tmp_path
    monkeypatch.setenv(VARIABLE, "")
    assert collection() is None
    monkeypatch.delenv(VARIABLE)
    assert collection() is None


@pytest.mark.parametrize(("place", "told"), [("none", "is no folder"), (".", r"holds no \*\.safetensors")])
def test_a_wrong_folder_is_refused(
    place: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / place))
    with pytest.raises(pytest.UsageError, match=f"{VARIABLE} names .*{told}"):
        collection()


def test_pytest_tells_of_a_wrong_folder_before_any_test(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", str(TESTS / "golden")],
        env={**os.environ, VARIABLE: str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith(f"ERROR: {VARIABLE} names ")
