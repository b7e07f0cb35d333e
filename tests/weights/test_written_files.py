"""F2: what is written can be read by the tools that people use next."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import expert_file, imported, moved
from merge_cli_helpers import Run, refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import neulig_ray
from neulig_ray.errors import InputError
from neulig_ray.ligand.files import ligand_bytes, read_ligand
from neulig_ray.ligand.portland import Portland
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_clip
from neulig_ray.models.origin_files import load_origin, origin_bytes
from neulig_ray.models.tower_files import describe, tower_bytes
from neulig_ray.weights.metadata import file_metadata
from neulig_ray.weights.tensor_file import Spec
from neulig_ray.weights.tensor_writer import TensorWriter, to_bytes, write_tensors

PACKAGE = Path(neulig_ray.__file__).parent
ARCH = ARCHS["tiny-vit"]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def merged(neulig: Run, folder: Path, *more: object) -> Path:
    out = folder / "m.safetensors"
    experts = [folder / f"{name}.safetensors" for name in "ab"]
    status, _, told = neulig("merge", *more, "--experts", *experts, "--out", out)
    assert status == 0, told
    return out


def a_mask(neulig: Run, folder: Path) -> Path:
    return merged(neulig, folder, "tall-mask", "--base", folder / "base.safetensors")


def a_dense(neulig: Run, folder: Path) -> Path:
    masks = a_mask(neulig, folder)
    assert (
        neulig("merge", "tall-mask", "--masks", masks, "--task", "a", "--out", folder / "d.safetensors")[0]
        == 0
    )
    return folder / "d.safetensors"


def an_export(form: str) -> Callable[[Run, Path], Path]:
    def make(neulig: Run, folder: Path) -> Path:
        path, _ = expert_file(folder)
        out = folder / ("hf" if form == "hf" else "e.safetensors")
        assert neulig("export", path, "--format", form, "--out", out)[0] == 0
        return out / "model.safetensors" if form == "hf" else out

    return make


def an_import(neulig: Run, folder: Path) -> Path:
    save_file(moved()[0], folder / "in.safetensors")
    assert imported(folder / "in.safetensors", folder / "i.safetensors") == 0
    return folder / "i.safetensors"


def of_bytes(make: Callable[[], bytes]) -> Callable[[Run, Path], Path]:
    def write(neulig: Run, folder: Path) -> Path:
        (folder / "x.safetensors").write_bytes(make())
        return folder / "x.safetensors"

    return write


def a_ligand() -> bytes:
    return ligand_bytes(Portland.initialised([("a", "b")], 8, seed=0), {"arch": "tiny-vit"})


WRITTEN: dict[str, Callable[[Run, Path], Path]] = {
    "F2-merge": lambda neulig, folder: merged(neulig, folder, "average"),
    "masked model": a_mask,
    "dense model of a mask": a_dense,
    "import": an_import,
    "export safetensors": an_export("safetensors"),
    "export open_clip": an_export("open_clip"),
    "export hf": an_export("hf"),
    "expert": of_bytes(lambda: tower_bytes(moved()[0], describe(ARCH, "tower"))),
    "origin": of_bytes(lambda: origin_bytes(build_clip(ARCH), ARCH, {})),
    "ligand": of_bytes(a_ligand),
    "statistics": of_bytes(lambda: to_bytes({"w": torch.ones(2)}, file_metadata())),
}


@pytest.mark.parametrize(
    "mask", [0o077, 0o022, 0o027, 0o007, 0o000], ids=["44-077", "44-022", "027", "007", "000"]
)
def test_modes_are_those_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("what", WRITTEN)
def test_every_file_says_that_it_is_of_torch(
    neulig: Run, models: dict[str, Path], tmp_path: Path, what: str
) -> None:
    path = WRITTEN[what](neulig, tmp_path)
    found = metadata_of(path)
    assert found["format"] == "pt"
    assert found.keys() <= {"format", "neulig"}
    assert ("neulig" in found) == ("export" not in what and what != "statistics")
    assert all(tensor.is_contiguous() for tensor in load_file(path).values())
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def writers() -> list[str]:
    """Calls of the package that write safetensors by other means than `weights.tensor_writer`'s."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
                names = {alias.name for alias in node.names}
                found += [
                    f"{file.name}: {name}"
                    for name in names & {"save", "save_file", "serialize", "serialize_file"}
                ]
            if (
                isinstance(node, ast.Attribute)
                and ("save" in node.attr or "serialize" in node.attr)
                and ast.unparse(node).startswith(("safetensors.", "st."))
            ):
                found.append(f"{file.name}: {ast.unparse(node)}")
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "TensorWriter", "to_bytes", "write_tensors",
            ):  # fmt: skip
                given = ast.unparse(node.args[-1]) if node.args else ""
                if file.name != "tensor_writer.py" and not given.startswith("file_metadata("):
                    found.append(f"{file.name}: {ast.unparse(node)}")
    return found


def test_all_writers_use_the_one_that_says_so() -> None:
    assert [found for found in writers() if ".to_bytes(" not in found] == []


def test_transformers_reads_a_merged_model(neulig: Run, models: dict[str, Path], tmp_path: Path) -> None:
    """What its releases up to 4.57 check before they read anything."""
    from transformers.modeling_utils import load_state_dict

    path = merged(neulig, tmp_path, "average")
    assert load_state_dict(str(path)).keys() == load_file(path).keys()
    assert metadata_of(path).get("format") in ("pt", "tf", "flax", "mlx")


def test_the_same_weights_are_the_same_bytes_in_every_process() -> None:
    """The library's own writer orders the metadata anew in each; names of artifacts hang on the bytes."""
    data = to_bytes({"w": torch.ones(2)}, file_metadata({"b": 1, "a": [2]}))
    expected = '{"__metadata__":{"format":"pt","neulig":"{\\"a\\": [2], \\"b\\": 1}"},"w":{"dtype":"F32",'
    assert data[8:].startswith(expected.encode())


def test_bytes_and_files_are_those_of_the_writer(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {
        "view": base[2:8].view(2, 3).T, "again": base, "half": torch.ones(3).half(),
        "scalar": torch.tensor(7), "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False]), "ünï": torch.ones(1).bfloat16(),
    }  # fmt: skip
    metadata = file_metadata({"a": 1})
    write_tensors(tmp_path / "f.safetensors", state, metadata)
    assert (tmp_path / "f.safetensors").read_bytes() == to_bytes(state, metadata)
    found = load_file(tmp_path / "f.safetensors")
    assert found.keys() == state.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in state.items()
    )


def test_our_own_readers_read_it() -> None:
    assert read_ligand(a_ligand()).combinations == (("a", "b"),)
    clip = build_clip(ARCH, seed=3)
    again = load_origin(origin_bytes(clip, ARCH, {}, half=False), ARCH).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in clip.state_dict().items())


# Names ------------------------------------------------------------------------------------------------------

NAMES = {"__metadata__": "__metadata__", "half a letter": "\ud800", "half a letter within": "a.\udc00.b"}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_file_can_hold_are_refused(neulig: Run, tmp_path: Path, name: str) -> None:
    spec = {NAMES[name]: Spec((1,), torch.float32)}
    with pytest.raises(InputError, match="which no safetensors file can hold: rename it"):
        TensorWriter(tmp_path / "m.safetensors", spec, {})
    with pytest.raises(InputError, match="which no safetensors file can hold"):
        to_bytes({NAMES[name]: torch.ones(1)}, {})
    assert os.listdir(tmp_path) == []
    paths = [tmp_path / f"{number}.pt" for number in range(2)]
    for number, path in enumerate(paths):
        torch.save({NAMES[name]: torch.ones(1) * number, "w": torch.ones(2) * number}, path)
    told = refused(neulig, tmp_path, "average", "--experts", *paths, "--out", tmp_path / "m.safetensors")
    assert "no safetensors file can hold" in told


@pytest.mark.parametrize(
    "name", ["", " ", "a\nb", "\0", "ünï", "\U0001f600", "x" * 10_000, '"', "\\", "__metadata"]
)
def test_odd_names_that_files_hold_are_read_by_the_library(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / "f.safetensors", {name: torch.arange(2), "w": torch.ones(1)}, file_metadata())
    assert load_file(tmp_path / "f.safetensors")[name].tolist() == [0, 1]


def test_a_header_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has at most 100000000"):
        TensorWriter(tmp_path / "m.safetensors", {}, {"neulig": "x" * 100_000_001})
    assert os.listdir(tmp_path) == []


def test_the_metadata_are_texts() -> None:
    about = {"b": [1, None], "a": {"x": 0.5}}
    assert {type(value) for value in file_metadata(about).values()} == {str}
    assert json.loads(file_metadata(about)["neulig"]) == about
