"""Files are UTF-8 whatever the locale is, and a console that lacks a sign shows an escape (F19)."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from samples import few_results

from neulig_ray.pipeline.results import _decoded

FOLDERS = ("neulig_ray", "scripts", "experiments", "benchmarks")
_TEXT_METHODS = {"read_text", "write_text"}
_PROCESSES = {"run", "Popen", "check_output", "check_call", "call"}
_FILES = {"NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile", "fdopen", "open"}


def without_encoding(text: str) -> Iterator[int]:
    """The lines that open a file as text, or a pipe, in the encoding of the locale."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in named or None in named:
            continue
        whole = ast.unparse(node.func)
        name = whole.rpartition(".")[2]
        if name in _TEXT_METHODS and whole != name and len(node.args) < (1 if name == "read_text" else 2):
            yield node.lineno
        if name in _PROCESSES and any(word in named for word in ("text", "universal_newlines")):
            yield node.lineno
        if name in _FILES and whole not in ("os.open", "Image.open", "tarfile.open", "wave.open"):
            places = int(whole in ("open", "io.open", "os.fdopen") or name == "SpooledTemporaryFile")
            given = named.get("mode") or (node.args[places] if len(node.args) > places else None)
            binary = "Temporary" in name if given is None else "b" in ast.unparse(given)
            if name == "open" and whole != "open" and given is not None and not _is_mode(given):
                continue  # not of a file: a gate, a store
            if not binary:
                yield node.lineno


def _is_mode(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and set(node.value) <= set("rwxab+t")
    )


def test_every_text_has_its_encoding() -> None:
    files = [file for folder in FOLDERS for file in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(files) > 200
    found = [
        f"{file.relative_to(REPOSITORY)}:{line}"
        for file in files
        for line in without_encoding(file.read_text(encoding="utf-8"))
    ]
    assert not found


WITHOUT = [
    "path.read_text()",
    "path.write_text(text)",
    "path.open()",
    'path.open("w")',
    'open("x")',
    'open("x", "a")',
    'open("x", mode="r")',
    "subprocess.run(command, text=True)",
    "subprocess.Popen(command, universal_newlines=True)",
    'tempfile.NamedTemporaryFile("w")',
    "os.fdopen(1)",
]
WITH = [
    'path.read_text(encoding="utf-8")',
    'path.read_text("utf-8")',
    'path.write_text(text, encoding="utf-8")',
    'path.open("rb")',
    'open("x", "wb")',
    'open("x", encoding="utf-8")',
    "subprocess.run(command)",
    'subprocess.run(command, text=True, encoding="utf-8")',
    "tempfile.NamedTemporaryFile()",
    "os.open(path, flags)",
    "Image.open(path)",
]


@pytest.mark.parametrize("text", WITHOUT)
def test_the_search_finds(text: str) -> None:
    assert list(without_encoding(text)) == [1]


@pytest.mark.parametrize("text", WITH)
def test_the_search_passes_over(text: str) -> None:
    assert list(without_encoding(text)) == []


# A locale of ASCII, and one of Latin-1 ------------------------------------------------------------------

LOCALES = {
    "F19-ascii": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    "stdio-ascii": {"PYTHONIOENCODING": "ascii:strict"},
    "stdio-latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locales")
    for name in ("one", "two"):
        own = folder / "storage" / name
        own.mkdir(parents=True)
        few_results().to_parquet(own / "results.parquet", index=False)
        about = {"experiment": name, "command": "neulig run ünï β"}
        (own / "results.json").write_text(json.dumps(about), encoding="utf-8")
        (folder / f"{name}.py").write_text(
            '"""Übung β · ≥ 2"""\nfrom neulig_ray.experiment.config import Experiment\n'
            f'experiment = Experiment(name="{name}")\n',
            encoding="utf-8",
        )
    (folder / "experiments").mkdir()
    (folder / "experiments" / "three.py").write_text((folder / "one.py").read_text("utf-8"), encoding="utf-8")
    (folder / "method.py").write_text('"""Wägung β."""\n', encoding="utf-8")
    (folder / "storage" / "nöte β").write_text("", encoding="utf-8")
    return folder


COMMANDS = {
    "help": ["--help"],
    "run-help": ["run", "one.py", "--help"],
    "ls-methods": ["ls", "methods", "--plugins", "method.py"],
    "ls-experiments": ["ls", "experiments"],
    "F19-report": ["report", "one.py", "two.py", "--storage", "storage", "--out", "page.html"],
    "storage-ls": ["storage", "ls", "--storage", "storage"],
}
WHICH = [("F19-ascii", command) for command in COMMANDS] + [
    ("stdio-ascii", "ls-experiments"),
    ("stdio-latin-1", "ls-experiments"),
]


@pytest.mark.parametrize(("locale", "command"), WHICH, ids=["-".join(which) for which in WHICH])
def test_commands_in_other_locales(place: Path, locale: str, command: str) -> None:
    (place / "page.html").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "neulig_ray", *COMMANDS[command]],
        cwd=place,
        env={**os.environ, **LOCALES[locale], "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=120,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed.decode("latin-1")
    assert b"Traceback" not in printed
    if command == "F19-report":
        page = (place / "page.html").read_bytes().decode("utf-8")
        assert "·" in page
        assert "ünï β" in page


@pytest.mark.parametrize("text", ["ünï β", "plain", "\ufffd"])
def test_the_command_is_recorded_as_it_was_typed(text: str) -> None:
    """In an ASCII locale Python has an argument's bytes as lone surrogates."""
    assert _decoded(text.encode().decode("ascii", "surrogateescape")) == text
    assert _decoded(text) == text
