"""F20: headers are read as safetensors' own library reads them: what it refuses is refused, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cli_helpers import Run, refused
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from neulig_ray.errors import InputError
from neulig_ray.models.tower_files import load_tensors
from neulig_ray.weights.tensor_file import DTYPES, TensorFile, refuse_others

W = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def whole(header: str | bytes, data: int = 8, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(range(data))


def theirs(path: Path) -> tuple[dict[str, tuple[list[int], str]], dict[str, str]] | None:
    """What the library reads; None where it refuses."""
    try:
        with safe_open(path, "np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            found = {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
            return found, dict(file.metadata() or {})
    except SafetensorError:
        return None


def ours(path: Path) -> tuple[dict[str, tuple[list[int], str]], dict[str, str]] | None:
    try:
        file = TensorFile(path)
    except InputError as error:
        return (
            None if str(path) in str(error) and "which is not read here" not in str(error) else ({}, {"": ""})
        )
    names = {dtype: name for name, dtype in DTYPES.items()}
    found = {name: ([*spec.shape], names[spec.dtype]) for name, spec in file.specs.items()}
    return found, dict(file.metadata)


def agree(path: Path, data: bytes) -> bool:
    """Both readers, of the file and of its bytes, say what the library says, to the last number."""
    path.write_bytes(data)
    read = theirs(path)
    if read is not None and any(dtype not in DTYPES for _, dtype in read[0].values()):
        with pytest.raises(InputError, match="which is not read here: convert it"):
            TensorFile(path)
        return True
    assert ours(path) == read
    if read is None:
        with pytest.raises(InputError, match="the bytes"):
            load_tensors(data, "the bytes")
        return False
    file, wanted = TensorFile(path), load_file(path)
    state, metadata = load_tensors(data, "the bytes")
    assert metadata == read[1]
    for name, tensor in wanted.items():
        for found in (file.read(name).view(tensor.shape), state[name]):
            assert torch.equal(found.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    return True


def entry(**change: Any) -> str:
    return json.dumps({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change)


REFUSED: dict[str, bytes] = {
    "F20-a name twice, its first place unused": whole(f'{{"w":{W},"w":{entry(data_offsets=[8, 16])}}}', 16),
    "F20-bytes after the last tensor": whole(f'{{"w":{W}}}', 9),
    "F20-a hole": whole(f'{{"w":{W},"v":{entry(data_offsets=[9, 17])}}}', 17),
    "F20-a shape of another size": whole(f'{{"w":{entry(shape=[3])}}}'),
    "38-a number in the metadata": whole(f'{{"__metadata__":{{"a":1}},"w":{W}}}'),
    "two tensors in one place": whole(f'{{"w":{W},"v":{W}}}'),
    "half upon another": whole(f'{{"w":{W},"v":{entry(data_offsets=[4, 12])}}}', 12),
    "an offset that is not the first": whole(f'{{"w":{entry(data_offsets=[4, 12])}}}', 12),
    "the metadata twice": whole(f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{W}}}'),
    "metadata that are a list": whole(f'{{"__metadata__":[],"w":{W}}}'),
    "metadata that are a tensor": whole(f'{{"__metadata__":{W}}}'),
    "metadata of null": whole(f'{{"__metadata__":{{"a":null}},"w":{W}}}'),
    "a field twice": whole('{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "a field less": whole('{"w":{"dtype":"F32","shape":[2]}}'),
    "a float": whole(f'{{"w":{entry(shape=[2.0])}}}'),
    "a negative number": whole(f'{{"w":{entry(shape=[-1, -2])}}}'),
    "minus zero": whole('{"w":{"dtype":"F32","shape":[0],"data_offsets":[-0,0]}}', 0),
    "true": whole(f'{{"w":{entry(shape=[True, 2])}}}'),
    "a text": whole(f'{{"w":{entry(shape=["2"])}}}'),
    "three offsets": whole(f'{{"w":{entry(data_offsets=[0, 8, 8])}}}'),
    "a number beyond 64 bits": whole(f'{{"w":{entry(shape=[2**64])}}}'),
    "a product beyond 64 bits": whole(f'{{"w":{entry(shape=[2**32, 2**32, 2])}}}'),
    "bytes beyond 64 bits": whole(f'{{"w":{entry(shape=[2**62])}}}'),
    "an unknown dtype": whole(f'{{"w":{entry(dtype="F99")}}}'),
    "a dtype in small letters": whole(f'{{"w":{entry(dtype="f32")}}}'),
    "half a byte": whole(f'{{"w":{entry(dtype="F4", shape=[15])}}}'),
    "NaN": whole(f'{{"w":{W[:-1]},"x":NaN}}}}'),
    "a number out of range": whole(f'{{"w":{W[:-1]},"x":1e999}}}}'),
    "half a letter": whole(f'{{"\\ud800":{W}}}'),
    "no UTF-8": whole(b'{"\xff":' + W.encode() + b"}"),
    "a byte-order mark": whole(f'\ufeff{{"w":{W}}}'),
    "padding of zeros": whole(f'{{"w":{W}}}\0\0'),
    "text after it": whole(f'{{"w":{W}}} x'),
    "a list": whole("[1]"),
    "a comma too many": whole(f'{{"w":{W},}}'),
    "a line break in a name": whole(f'{{"a\nb":{W}}}'),
    "no header": whole(""),
    "blanks alone": whole(" " * 80),
    "a header longer than the file": whole(f'{{"w":{W}}}', length=10**6),
    "a header of 2^63": whole(f'{{"w":{W}}}', length=2**63),
}
READ: dict[str, bytes] = {
    "a name twice, in one place": whole(f'{{"w":{W},"w":{W}}}'),
    "a key of the metadata twice": whole(f'{{"__metadata__":{{"a":"1","a":"2"}},"w":{W}}}'),
    "metadata of null": whole(f'{{"__metadata__":null,"w":{W}}}'),
    "blanks before and after": whole(f' \n\t{{"w":{W}}}   \r\n'),
    "80 blanks before": whole(f'{" " * 80}{{"w":{W}}}'),
    "fields more": whole(f'{{"w":{W[:-1]},"x":[[1e3,{{"y":null}}]],"x":2}}}}'),
    "an entry as a list": whole('{"w":["F32",[2],[0,8]]}'),
    "no name": whole(f'{{"":{W}}}'),
    "no dimension": whole('{"w":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}'),
    "empty ones": whole('{"z":{"dtype":"F32","shape":[0,9],"data_offsets":[8,8]},"w":' + W + "}"),
    "nothing": whole("{}", 0),
    "another order": whole(f'{{"v":{entry(shape=[1], data_offsets=[8, 12])},"w":{W}}}', 12),
    "letters beyond Unicode's first plane": whole(f'{{"\\ud83d\\ude00":{W},"__metadata__":{{"ä":"ö"}}}}'),
    "F8": whole('{"w":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'),
    "F4": whole('{"w":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}'),
    "U16": whole('{"w":{"dtype":"U16","shape":[4],"data_offsets":[0,8]}}'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_refuses_is_refused(tmp_path: Path, case: str) -> None:
    assert not agree(tmp_path / "f.safetensors", REFUSED[case])


@pytest.mark.parametrize("case", READ)
def test_what_the_library_reads_is_read(tmp_path: Path, case: str) -> None:
    if case == "F4":  # numbers of half a byte: read by the library, and by no torch
        (tmp_path / "f.safetensors").write_bytes(READ[case])
        with pytest.raises(InputError, match="'w' is F4, which is not read here"):
            TensorFile(tmp_path / "f.safetensors")
        with pytest.raises(InputError, match="F4, which is not read here"):
            load_tensors(READ[case], "the bytes")
        return
    assert agree(tmp_path / "f.safetensors", READ[case])


numbers = st.one_of(
    st.integers(0, 12), st.integers(-2, 2**65), st.sampled_from([0.0, 2.0, True, None, "2", [], 2**32, 2**63])
)
offsets = st.one_of(
    st.tuples(st.integers(0, 12), st.integers(0, 16)), st.lists(numbers, max_size=3), st.just({}), st.none()
)
dtypes = st.one_of(
    st.sampled_from([*DTYPES, "F8_E4M3", "F4", "F6_E2M3", "C64", "U64", "f32", "", "F99"]),
    st.sampled_from([None, 3, {"F32": None}, ["F32"]]),
)
good = st.tuples(st.sampled_from([*DTYPES]), st.lists(st.integers(0, 3), max_size=3))
texts = st.one_of(st.sampled_from(["w", "v", "", "__metadata__", "a.b", "\0"]), st.text(max_size=3))
values = st.one_of(
    st.none(), st.text(max_size=2), st.integers(), st.dictionaries(texts, st.integers(), max_size=1)
)
metadata = st.one_of(
    st.none(), st.dictionaries(texts, st.text(max_size=3), max_size=2), st.dictionaries(texts, values)
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A header of tensors that follow each other, most of the time spoilt in one or two places."""
    parts, at = [], 0
    for name in draw(st.lists(texts.filter(lambda t: t != "__metadata__"), max_size=3)):
        dtype, shape = draw(good)
        size = DTYPES[dtype].itemsize
        for number in shape:
            size *= number
        parts.append([name, {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}])
        at += size
    for _ in range(draw(st.integers(0, 2))):
        if not parts:
            break
        part = draw(st.sampled_from(parts))
        spoil = draw(
            st.sampled_from(["dtype", "shape", "data_offsets", "lack", "more", "name", "twice", "kind"])
        )
        if spoil == "name":
            part[0] = draw(texts)
        elif spoil == "twice":
            parts.append(list(part))
        elif spoil == "kind":
            part[1] = draw(values)
        elif isinstance(part[1], dict):
            made = {"dtype": dtypes, "shape": st.lists(numbers, max_size=3), "data_offsets": offsets}
            if spoil == "lack":
                part[1] = {key: value for key, value in part[1].items() if key != "shape"}
            elif spoil == "more":
                part[1] = part[1] | {"more": draw(values)}
            else:
                part[1] = part[1] | {spoil: draw(made[spoil])}
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), ["__metadata__", draw(metadata)])
    pairs = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in draw(st.permutations(parts))]
    text = (
        draw(st.sampled_from(["", " "]))
        + "{"
        + ",".join(pairs)
        + "}"
        + draw(st.sampled_from(["", "  ", "\0"]))
    )
    return whole(text, 0) + bytes(max(0, at + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))))


def test_generated_headers_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    read: list[bool] = []

    @settings(max_examples=150, deadline=None)
    @given(files())
    def check(data: bytes) -> None:
        read.append(agree(tmp_path / "generated.safetensors", data))

    check()
    assert 15 < sum(read) < len(read) - 15, "they are of both kinds"


@pytest.mark.parametrize(
    "case", ["F20-a name twice, its first place unused", "F20-bytes after the last tensor"]
)
def test_merge_refuses_them_by_name(neulig: Run, tmp_path: Path, case: str) -> None:
    (tmp_path / "bad.safetensors").write_bytes(REFUSED[case])
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    experts = ["--experts", tmp_path / "a.safetensors", tmp_path / "bad.safetensors"]
    told = refused(neulig, tmp_path, "average", *experts, "--out", tmp_path / "m.safetensors")
    assert "bad.safetensors is damaged" in told
    assert "copy it again" in told
    if "after" in case:
        assert "1 bytes follow its last tensor" in told


def test_the_largest_header_is_told_before_it_is_read() -> None:
    with pytest.raises(InputError, match="a header of 100000001 bytes, and readers take at most 100000000"):
        refuse_others((100_000_001).to_bytes(8, "little") + b'{"w":', 2 * 10**8, "f")
