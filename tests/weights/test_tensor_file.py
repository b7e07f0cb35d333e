"""The safetensors format as we read and write it, held against its own library."""

import errno
import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neulig_ray.errors import InputError, StageError
from neulig_ray.models.tower_files import load_tensors
from neulig_ray.weights.state_dicts import open_checkpoint
from neulig_ray.weights.tensor_file import DTYPES, Spec, TensorFile
from neulig_ray.weights.tensor_writer import TensorWriter

State = dict[str, torch.Tensor]
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (0,), (3, 0, 2), (2, 3, 5))


def everything(seed: int = 0) -> State:
    """A tensor of every dtype in every shape."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{'x'.join(map(str, shape))}": torch.randint(0, 100, shape, generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
        for shape in SHAPES
    }


def specs_of(state: State) -> dict[str, Spec]:
    return {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def write(path: Path, state: State, metadata: dict[str, str] | None = None) -> None:
    with TensorWriter(path, specs_of(state), metadata or {}) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def read_all(file: TensorFile) -> State:
    return {name: file.read(name).view(spec.shape) for name, spec in file.specs.items()}


def test_their_reader_reads_what_we_write(tmp_path: Path) -> None:
    state = everything()
    write(tmp_path / "f.safetensors", state, {"a": "ä", "neulig": '{"x": 1}'})
    assert_same(load_file(tmp_path / "f.safetensors"), state)
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        assert file.metadata() == {"a": "ä", "neulig": '{"x": 1}'}


def test_we_read_what_their_writer_writes(tmp_path: Path) -> None:
    state = everything(1)
    save_file(state, tmp_path / "f.safetensors", {"a": "b"})
    file = TensorFile(tmp_path / "f.safetensors")
    assert_same(read_all(file), state)
    assert file.metadata == {"a": "b"}


def test_both_write_the_same_bytes(tmp_path: Path) -> None:
    """Of dtypes of different widths: theirs has an order of its own among dtypes of one width."""
    kept = ("I64.", "F32.", "BF16.", "U8.")
    state = {name: tensor for name, tensor in everything(2).items() if name.startswith(kept)}
    save_file(state, tmp_path / "theirs.safetensors", {"a": "b"})
    write(tmp_path / "ours.safetensors", state, {"a": "b"})
    ours, theirs = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs


def test_every_tensor_lies_where_its_dtype_can_be_mapped(tmp_path: Path) -> None:
    write(tmp_path / "f.safetensors", everything(), {"odd": "x" * 3})
    data = (tmp_path / "f.safetensors").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    for name, spec in TensorFile(tmp_path / "f.safetensors").specs.items():
        assert spec.offset % spec.dtype.itemsize == 0, name


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50], ids=["pickle 2", "pickle 4", "zip"])
def test_a_header_whose_length_spells_another_format(tmp_path: Path, length: int) -> None:
    """The first bytes are the header's length: \\x80\\x02 begins pickles too, PK zip files."""
    path, state = tmp_path / "f.safetensors", {"w": torch.ones(2)}
    write(path, state, {"a": ""})
    header = int.from_bytes(path.read_bytes()[:8], "little")
    write(path, state, {"a": "x" * (length - header)})
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert_same(read_all(TensorFile(path)), state)
    assert isinstance(open_checkpoint(path).source, TensorFile)
    assert_same(load_tensors(path.read_bytes(), "f")[0], state)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    write(tmp_path / "f.safetensors", {}, {"a": "b"})
    assert load_file(tmp_path / "f.safetensors") == {}
    assert TensorFile(tmp_path / "f.safetensors").specs == {}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.data())
def test_slices_are_those_of_the_flat_view(tmp_path_factory: Any, numel: int, data: Any) -> None:
    path = tmp_path_factory.mktemp("slices") / "f.safetensors"
    tensor = torch.arange(
        numel, dtype=data.draw(st.sampled_from([torch.float16, torch.float32, torch.int64]))
    )
    cuts = sorted({0, numel, *data.draw(st.lists(st.integers(0, numel), max_size=4))})
    pieces = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    with TensorWriter(path, {"other": Spec((3,), torch.uint8), "t": Spec((numel,), tensor.dtype)}, {}) as out:
        for start, stop in pieces:
            out.write("t", tensor[start:stop], start)
    file = TensorFile(path)
    for start, stop in pieces:
        assert torch.equal(file.read("t", start, stop), tensor[start:stop])
        into = torch.empty(stop - start)
        file.read_into(into, "t", start)
        assert torch.equal(into, tensor[start:stop].float())


def test_writing_converts_to_the_files_dtype(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with TensorWriter(path, {"h": Spec((2, 2), torch.bfloat16)}, {}) as writer:
        writer.write("h", torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T)
    assert torch.equal(load_file(path)["h"], torch.tensor([[1, 3], [2, 4]], dtype=torch.bfloat16))


def test_half_precision_is_never_infinite_by_conversion(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with (
        pytest.raises(StageError, match=r"'h' has numbers beyond float16's largest \(65504\)"),
        TensorWriter(path, {"h": Spec((2,), torch.float16)}, {}) as writer,
    ):
        writer.write("h", torch.tensor([1.0, 70000.0]))
    assert os.listdir(tmp_path) == []


# Whole or not at all ----------------------------------------------------------------------------------------


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_text("old")

    def fail() -> None:
        with TensorWriter(path, {"t": Spec((2,), torch.float32)}, {}):
            assert path.read_text() == "old", "nothing takes the name before the end"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path) == ["f.safetensors"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_told_with_the_bytes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        StageError, match=r"f.safetensors: No space left on device \(it takes 72 bytes; \d+ are free"
    ):
        TensorWriter(tmp_path / "f.safetensors", {"t": Spec((2,), torch.float32)}, {})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no/f.safetensors cannot be written: No such file"):
        TensorWriter(tmp_path / "no/f.safetensors", {}, {})


# What is refused --------------------------------------------------------------------------------------------


def whole(tmp_path: Path) -> bytes:
    save_file({"w": torch.ones(4, 5)}, tmp_path / "w.safetensors")
    return (tmp_path / "w.safetensors").read_bytes()


def with_header(data: bytes, change: dict[str, Any]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["w"] |= change
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: d[:-1], "truncated"),
        (lambda d: d[:20], "truncated: 20 bytes, but its header alone"),
        (lambda d: d[:5], "not a safetensors file"),
        (lambda d: b"", "not a safetensors file"),
        (lambda d: d[:9] + b"?" + d[10:], "damaged"),
        (lambda d: b"\xff" * 7 + b"\x7f" + d[8:], "truncated"),
        (lambda d: with_header(d, {"dtype": "F99"}), "damaged.*F99"),
        (
            lambda d: with_header(d, {"shape": [4, 6]}),
            r"damaged.*'w' has bytes 0 to 80 for F32 of.*\(4, 6\)",
        ),
        (lambda d: with_header(d, {"shape": [-4, -5]}), "damaged"),
        (lambda d: with_header(d, {"data_offsets": [-80, 0]}), "damaged"),
        (lambda d: with_header(d, {"data_offsets": [8, 88]}), "damaged.*invalid offset"),
        (lambda d: with_header(d, {"data_offsets": "x"}), "damaged"),
        (lambda d: b"PK\x03\x04" + d, "zip file, as torch.save writes.*neulig import"),
        (lambda d: pickle.dumps({"w": 1}), "pickle.*neulig import"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: Any, words: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(whole(tmp_path)))
    with pytest.raises(InputError, match=words) as told:
        TensorFile(path)
    assert str(path) in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        TensorFile(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        TensorFile(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(whole(tmp_path))
    file = TensorFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(StageError, match="became shorter"):
        file.read("w")
