"""What `--out` names is tried before the work, and written whole or not at all (F18)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import few_results

from neulig_ray.errors import InputError, StageError
from neulig_ray.outputs import check_output, write_output
from neulig_ray.report import html

Neulig = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment and a storage with results of it and of another."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        folder = tmp_path / "storage" / name
        folder.mkdir(parents=True)
        few_results().to_parquet(folder / "results.parquet", index=False)
        (folder / "results.json").write_text(json.dumps({"experiment": name}), encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(
            f'"""A."""\nfrom neulig_ray.config import Experiment\nexperiment = Experiment(name="{name}")\n',
            encoding="utf-8",
        )
    return tmp_path


OUTS = {
    "F18-no-folder": ("no/such/x.html", "there is no folder"),
    "F18-folder": ("storage", "is a folder"),
    "nothing": ("", "is a folder"),
    "device": ("/dev/full", "a device or a pipe"),
    "pipe": ("pipe", "a device or a pipe"),
    "below-a-file": ("one.py/x.html", "there is no folder"),
    "not-writable": ("/proc/x.html", "cannot be written"),
    "too-long": ("x" * 300, "cannot be written"),
    "null": ("a\0b", "cannot be written"),
    "nobodys-home": ("~nobody-of-this-name/x.html", "cannot be written"),
    "link-to-a-folder": ("link", "is a folder"),
}


@pytest.mark.parametrize("names", [["one.py"], ["one.py", "two.py"]], ids=["one", "several"])
@pytest.mark.parametrize(("out", "told"), OUTS.values(), ids=OUTS.keys())
def test_a_report_that_could_not_be_written_is_not_begun(
    place: Path, neulig: Neulig, monkeypatch: pytest.MonkeyPatch, names: list[str], out: str, told: str
) -> None:
    os.mkfifo(place / "pipe")
    (place / "link").symlink_to("storage")
    monkeypatch.setattr(html, "render", lambda *_: pytest.fail("it was begun"))
    before = sorted(place.rglob("*"))
    status, _, error = neulig("report", *names, "--storage", place / "storage", "--out", out)
    assert status == 2
    assert told in error
    assert "--out" in error
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["import", "nothing.pt", "--arch", "tiny-vit", "--task", "x", "--origin", "seed-0"], "is a folder"),
        (["export", "nothing.safetensors", "--format", "safetensors"], "is a folder"),
        (["export", "nothing.safetensors", "--format", "hf"], "exists: name a new folder"),
    ],
    ids=["import", "export", "export-hf"],
)
def test_other_commands_try_it_before_they_read(
    place: Path, neulig: Neulig, command: list[str], told: str
) -> None:
    (place / "there.safetensors").mkdir()
    status, _, error = neulig(*command, "--out", "there.safetensors")
    assert status == 2
    assert told in error
    status, _, error = neulig(*command, "--out", "one.py/x.safetensors")
    assert (status, "one.py" in error) == (2, True)


def test_a_page_is_written_over_an_earlier_one(place: Path, neulig: Neulig) -> None:
    (place / "page.html").write_text("earlier", encoding="utf-8")
    given = ["report", "one.py", "two.py", "--storage", place / "storage", "--out", "page.html"]
    assert neulig(*given)[0] == 0
    assert "ensembling" in (place / "page.html").read_text(encoding="utf-8")


def test_the_earlier_page_stays_where_the_new_one_fails(
    place: Path, neulig: Neulig, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = place / "page.html"
    page.write_text("earlier", encoding="utf-8")
    given = ["report", "one.py", "two.py", "--storage", place / "storage", "--out", page]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, error = neulig(*given)
    assert (status, "No space left on device" in error) == (1, True)
    assert page.read_text(encoding="utf-8") == "earlier"
    assert not list(place.glob(".*.part"))


def test_links_are_followed_and_missing_folders_left_to_the_writer(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old", encoding="utf-8")
    (tmp_path / "link.html").symlink_to("real.html")
    write_output(check_output(tmp_path / "link.html"), b"new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_bytes() == b"new"
    assert check_output(tmp_path / "a/b/c.html", parents=True) == tmp_path / "a/b/c.html"
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="there is no folder"):
        check_output(tmp_path / "a/b/c.html")
    with pytest.raises(StageError, match="cannot be written"):
        write_output(tmp_path / "a/b/c.html", b"")
