"""Hostile files of weights end in a clear refusal, within seconds and in bounded memory."""

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ARCH, equal, imported, moved
from merge_cli_helpers import Run, refused
from safetensors.torch import load_file, save, save_file

from neulig_ray.errors import InputError
from neulig_ray.models.formats.checkpoints import read_checkpoint
from neulig_ray.models.formats.huggingface import config_of
from neulig_ray.models.tower_files import read_tower
from neulig_ray.weights import pickles
from neulig_ray.weights.unpickling import process

SECONDS = 20  # of processor time, so that a busy machine fails nothing


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def refused_by_both(run: Run, folder: Path, hostile: Path) -> str:
    """What merge and import say of a file; both end with status 2 and leave nothing, soon."""
    before = processor_seconds()
    other = folder / "other.safetensors"
    save_file({"w": torch.ones(2)}, other)
    told = refused(run, folder, "average", "--experts", other, hostile, "--out", folder / "m.safetensors")
    status, _, also = run(
        "import", hostile, "--arch", "tiny-vit", "--task", "digits", "--origin", "seed-0",
        "--out", folder / "m.safetensors",
    )  # fmt: skip
    assert status == 2, also
    assert str(hostile.parent) in told
    assert str(hostile.parent) in also
    assert processor_seconds() - before < SECONDS
    assert not (folder / "m.safetensors").exists()
    return told + also


# Zip files of torch.save ------------------------------------------------------------------------------------


def entries_of(state: Any) -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save(state, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, entries: dict[str, bytes], compressed: str = "") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            method = zipfile.ZIP_DEFLATED if compressed and name.endswith(compressed) else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, method)


def in_list(path: Path, end: str, change: Callable[[bytearray, int], None]) -> None:
    """Change the record, at an offset, that the zip file's list of entries has of the entry `end`."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    while data[at : at + 4] == b"PK\x01\x02":
        lengths = struct.unpack("<HHH", data[at + 28 : at + 34])
        if data[at + 46 : at + 46 + lengths[0]].endswith(end.encode()):
            change(data, at)
            path.write_bytes(data)
            return
        at += 46 + sum(lengths)
    raise AssertionError(end)


@pytest.mark.parametrize("entry", ["byteorder", "version", "data.pkl", "data/0", ".format_version", "extra"])
def test_every_entry_of_a_zip_file_that_grows_is_refused(neulig: Run, tmp_path: Path, entry: str) -> None:
    """20 MB of zeros in 20 kB; the declared size is the true one, and the file as small as any."""
    entries = entries_of({"w": torch.ones(3)})
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/{entry}"] = bytes(2 * 10**7)
    zipped(tmp_path / "bomb.pt", entries, compressed=f"/{entry}")
    assert (tmp_path / "bomb.pt").stat().st_size < 40_000
    told = refused_by_both(neulig, tmp_path, tmp_path / "bomb.pt")
    assert told.count(f"its entry {root}/{entry} is compressed") == 2


LIES = {
    "small declared, huge stored": (24, 8, "says that it has 8 bytes"),
    "huge declared, small stored": (24, 2**31, "says that it has 2147483648 bytes"),
    "huge stored, small declared": (20, 2**31, "and takes 2147483648"),
    "another place": (42, 7, "is not where the list of entries says"),
}


@pytest.mark.parametrize("entry", ["byteorder", "data/0"])
@pytest.mark.parametrize("lie", LIES)
def test_sizes_and_places_that_lie_are_refused(neulig: Run, tmp_path: Path, lie: str, entry: str) -> None:
    field, value, words = LIES[lie]
    path = tmp_path / "lying.pt"
    zipped(path, entries_of({"w": torch.ones(300)}))
    in_list(path, f"/{entry}", lambda data, at: struct.pack_into("<I", data, at + field, value))
    if words.startswith("says that it has 8") and entry in ("byteorder", "version"):
        words = "its entry"
    assert words in refused_by_both(neulig, tmp_path, path)


def test_entries_that_lie_upon_each_other_or_are_there_twice_are_refused(neulig: Run, tmp_path: Path) -> None:
    path, entries = tmp_path / "upon.pt", entries_of({"w": torch.ones(300), "v": torch.ones(300)})
    zipped(path, entries)
    first: list[int] = []
    in_list(path, "/data/0", lambda data, at: first.append(*struct.unpack_from("<I", data, at + 42)))
    in_list(path, "/data/1", lambda data, at: struct.pack_into("<I", data, at + 42, first[0]))
    assert "lies upon another" in refused_by_both(neulig, tmp_path, path)
    path = tmp_path / "twice.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, data)
    assert "two entries" in refused_by_both(neulig, tmp_path, path)


# Pickles ----------------------------------------------------------------------------------------------------


def shared(leaf: Any, levels: int = 23) -> dict[str, Any]:
    """2^levels ways lead to the leaf, and levels + 1 objects are there."""
    for _ in range(levels):
        leaf = {"a": leaf, "b": leaf}
    return leaf


def own(levels: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = {"w": torch.ones(2)}
    inner = found
    for _ in range(levels):
        inner["inner"] = {}
        inner = inner["inner"]
    inner["again"] = found
    return found


def nested(opening: bytes, closing: bytes, count: int = 200_000) -> bytes:
    return b"\x80\x02" + opening * count + b"N" + closing * count + b"."


def module(leaf: Any) -> Any:
    """A pickled module whose parts are the same ones again and again."""
    found = torch.nn.Linear(2, 2)
    for _ in range(23):
        outer = torch.nn.Module()
        outer.a = outer.b = found
        found = outer
    return found


BOMBS: dict[str, tuple[Any, str]] = {
    "dicts with one tensor": (lambda: shared({"w": torch.ones(2)}), "names to tensors"),
    "dicts with nothing": (lambda: shared({}), "no tensors"),
    "lists": (lambda: {"x": shared([1]), "y": [[shared({})]]}, "no tensors"),
    "modules": (lambda: module(None), "names to tensors"),
    "one tensor": (lambda: {"state_dict": shared(torch.ones(2))}, "names to tensors"),
    "a dict in itself": (own, "holds itself"),
    "a dict in itself, deep": (lambda: own(50), "holds itself"),
    "150 levels": (lambda: shared_chain(150), "nested more than 100 levels deep"),
    "dicts 200,000 deep": (
        b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 200_000 + b"N" + b"s" * 200_000 + b".",
        "no",
    ),
    "tuples 200,000 deep": (nested(b"", b"\x85"), "no tensors"),
    "a tuple 200,000 deep as a key": (b"\x80\x02}N" + b"\x85" * 2_000_000 + b"Ns.", "its reader ended"),
    "a memo of 2^31": (b"\x80\x02}r\xff\xff\xff\x7f.", "more memory"),
    "bytes of 2^40": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "more memory"),
    "a text of 2^40": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "more memory"),
    "a set for each byte": (b"\x80\x04(" + b"\x8f" * 6_000_000 + b"t.", "more memory"),
}


def shared_chain(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"w": torch.ones(2)}
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_grow_or_wind_are_refused(neulig: Run, tmp_path: Path, bomb: str) -> None:
    make, words = BOMBS[bomb]
    path = tmp_path / "bomb.pt"
    path.write_bytes(make) if isinstance(make, bytes) else torch.save(make(), path)
    assert words in refused_by_both(neulig, tmp_path, path)


def test_time_is_limited_by_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose hash takes 2^60 steps."""
    monkeypatch.setattr(pickles, "SECONDS", 0.5)
    path = tmp_path / "slow.pt"
    path.write_bytes(b"\x80\x02}N\x85" + b"2\x86" * 60 + b"Ns.")
    before = processor_seconds()
    with pytest.raises(InputError, match=r"slow\.pt cannot be read: .* took more than the \d s"):
        read_checkpoint(path)
    assert processor_seconds() - before < SECONDS
    assert pickles.RATE == 50e6


def test_memory_is_limited_beyond_what_the_imports_took(tmp_path: Path) -> None:
    assert process.MEMORY == 1 << 30
    path = tmp_path / "large.pt"
    torch.save({"w": torch.ones(20_000_000)}, path)  # 80 MB are looked through without being read
    assert pickles.pickled_tensors(path)[0]["w"].sum() == 20_000_000


def test_shared_parts_of_ordinary_files_keep_all_of_their_names(tmp_path: Path) -> None:
    tied = torch.nn.Module()
    tied.encoder = tied.decoder = torch.nn.Linear(2, 3)
    torch.save(tied, tmp_path / "tied.pt")
    found, _ = pickles.pickled_tensors(tmp_path / "tied.pt")
    assert found.keys() == tied.state_dict().keys()


# JSON -------------------------------------------------------------------------------------------------------

DEEP = "[" * 200_000 + "]" * 200_000


def with_header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + bytes(4)


HEADERS = {
    "an entry": f'{{"w":{{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":{DEEP}}}}}',
    "a shape": f'{{"w":{{"dtype":"F32","shape":{DEEP},"data_offsets":[0,4]}}}}',
    "the metadata": f'{{"__metadata__":{{"a":{DEEP}}},"w":["I8",[4],[0,4]]}}',
    "objects": '{"w":' * 200_000 + "1" + "}" * 200_000,
}


@pytest.mark.parametrize("where", HEADERS)
def test_headers_nested_200_000_deep_are_refused(neulig: Run, tmp_path: Path, where: str) -> None:
    path = tmp_path / "deep.safetensors"
    path.write_bytes(with_header(HEADERS[where]))
    assert refused_by_both(neulig, tmp_path, path).count("damaged: its header cannot be read") == 2
    with pytest.raises(InputError, match="damaged: its header"):
        read_tower(path)


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 200_000 + "1" + "}" * 200_000, '"' + "x" * (1 << 25) + '"'])
def test_what_a_file_says_of_itself_is_read_in_bounds(neulig: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.safetensors"
    path.write_bytes(save({"w": torch.ones(2)}, {"format": "pt", "neulig": text}))
    refused_by_both(neulig, tmp_path, path)
    status, _, told = neulig("export", path, "--format", "safetensors", "--out", tmp_path / "e.safetensors")
    assert status == 2
    assert path.name in told


@pytest.mark.parametrize(
    "about", ["[]", '{"kind": ["tower"]}', '{"kind": {}}', '{"origin_fingerprint": [1]}']
)
def test_what_a_file_says_of_itself_may_be_anything(neulig: Run, tmp_path: Path, about: str) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for number, path in enumerate(paths):
        path.write_bytes(save({"w": torch.ones(2) * number}, {"neulig": about}))
    status, _, told = neulig("merge", "average", "--experts", *paths, "--out", tmp_path / "m.safetensors")
    assert (status, "Traceback" in told) == (0 if about == "[]" else 2, False)


def test_an_arch_is_built_as_it_is_known_and_not_as_a_file_says(neulig: Run, tmp_path: Path) -> None:
    path = tmp_path / "tower.safetensors"
    about = {"format": 1, "kind": "tower", "arch": "tiny-vit", "activation": "quick_gelu"}
    huge = {**ARCH.config, "vision_cfg": {**ARCH.config["vision_cfg"], "layers": 10**9}}
    before = processor_seconds()
    for config, arch in ((huge, "tiny-vit"), (huge, "unheard-of"), (3, "tiny-vit"), ([], ["tiny-vit"])):
        metadata = {**about, "config": config, "arch": arch}
        path.write_bytes(save({"w": torch.ones(2)}, {"neulig": json.dumps(metadata)}))
        status, _, told = neulig(
            "export", path, "--format", "safetensors", "--out", tmp_path / "e.safetensors"
        )
        assert status == 2, told
    assert processor_seconds() - before < SECONDS


SETTINGS = {
    "deep": DEEP,
    "objects": '{"a":' * 200_000 + "1" + "}" * 200_000,
    "a list": "[1]",
    "a number": "3",
    "null": "null",
    "torn": '{"model_type": "clip", ',
    "another encoding": "\xff\xfe",
}


@pytest.mark.parametrize("name", ["config.json", "open_clip_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", SETTINGS)
def test_settings_and_indices_are_read_in_bounds(neulig: Run, tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if name == "model.safetensors.index.json":
        (folder / "config.json").write_text(json.dumps(config_of(ARCH)))
    else:
        weights = "model" if name == "config.json" else "open_clip_model"
        save_file({"w": torch.ones(2)}, folder / f"{weights}.safetensors")
    (folder / name).write_bytes(SETTINGS[text].encode("latin1"))
    assert imported(folder, tmp_path / "m.safetensors") == 2
    with pytest.raises(InputError, match=name):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config.json", {"model_type": "clip", "vision_config": [1]}),
        ("config.json", {"model_type": ["clip"]}),
        ("open_clip_config.json", {"model_cfg": [1], "preprocess_cfg": {}}),
        ("open_clip_config.json", {"preprocess_cfg": "bicubic"}),
    ],
)
def test_settings_of_other_types_are_refused(tmp_path: Path, name: str, value: Any, capsys: Any) -> None:
    weights = "model" if name == "config.json" else "open_clip_model"
    save_file({"w": torch.ones(2)}, tmp_path / f"{weights}.safetensors")
    (tmp_path / name).write_text(json.dumps(value))
    assert imported(tmp_path, tmp_path / "m.safetensors") == 2
    assert str(tmp_path) in capsys.readouterr().err


# Indices ----------------------------------------------------------------------------------------------------


def sharded(folder: Path, seed: int = 1, suffix: str = "safetensors") -> dict[str, torch.Tensor]:
    """A tower in two files and an index, with the configuration of an open_clip... of transformers' CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    state, _ = moved(seed=seed)
    names = list(state)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    weights = "model" if suffix == "safetensors" else "pytorch_model"
    index = {}
    for number, half in enumerate(halves, start=1):
        file = f"{weights}-{number:05d}-of-00002.{suffix}"
        part = {name: state[name].clone() for name in half}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
        index |= dict.fromkeys(half, file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / f"{weights}.{suffix}.index.json").write_text(text)
    (folder / "config.json").write_text(json.dumps(config_of(ARCH)))
    return state


def reindexed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def moved_out(folder: Path) -> Path:
    """The first of the files, in a folder beside."""
    outside = folder.parent / "outside"
    outside.mkdir()
    return (folder / "model-00001-of-00002.safetensors").rename(outside / "stolen.safetensors")


def renamed(to: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        moved_out(folder)
        names = {"absolute": str(folder.parent / "outside/stolen.safetensors")}
        reindexed(
            folder,
            lambda index: index["weight_map"].update(
                {n: names.get(to, to) for n, f in index["weight_map"].items() if "00001" in f}
            ),
        )

    return change


def set_map(value: Any) -> Callable[[Path], Any]:
    return lambda folder: reindexed(folder, lambda index: index.update(weight_map=value))


def linked(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").symlink_to(moved_out(folder))


def linked_folder(folder: Path) -> None:
    outside = moved_out(folder)
    (folder / "below").symlink_to(outside.parent)
    reindexed(folder, lambda index: index["weight_map"].update(w="below/stolen.safetensors"))


def twice(folder: Path) -> None:
    (folder / "again.safetensors").symlink_to("model-00001-of-00002.safetensors")
    reindexed(folder, lambda index: index["weight_map"].update(w="again.safetensors"))


def doubled(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    other = load_file(folder / "model-00001-of-00002.safetensors")
    name = next(iter(other))
    save_file({**load_file(path), name: other[name]}, path)


INDICES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an absolute path": (renamed("absolute"), "no file below its folder"),
    "a path upwards": (renamed("../outside/stolen.safetensors"), "no file below its folder"),
    "upwards from below": (renamed("below/../../outside/stolen.safetensors"), "no file below its folder"),
    "backslashes": (renamed("..\\outside\\stolen.safetensors"), "no file below its folder"),
    "a null byte": (renamed("model\0.safetensors"), "no file below its folder"),
    "an empty name": (renamed(""), "no file below its folder"),
    "a link out": (linked, "a link that leads out of its folder"),
    "a linked folder": (linked_folder, "names"),
    "a missing file": (lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "is not there"),
    "one file under two names": (twice, "the same file as another"),
    "a tensor in two files": (doubled, "hold"),
    "no map": (lambda f: reindexed(f, lambda index: index.pop("weight_map")), "has no weight_map"),
    "a list": (set_map([1]), "has no weight_map"),
    "numbers": (set_map({"w": 3}), "has no weight_map"),
    "lists of files": (set_map({"w": ["a.safetensors"]}), "has no weight_map"),
    "nothing": (set_map({}), "has no weight_map"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_names_files_of_its_own_folder(neulig: Run, tmp_path: Path, case: str) -> None:
    change, words = INDICES[case]
    folder = tmp_path / "model"
    sharded(folder)
    change(folder)
    for source in (folder, folder / "model.safetensors.index.json"):
        assert words in refused_by_both(neulig, tmp_path, source)


@pytest.mark.parametrize("source", ["snapshot", "index"])
def test_the_hubs_cache_whose_files_are_links_is_read(neulig: Run, tmp_path: Path, source: str) -> None:
    """models--OWNER--NAME/snapshots/COMMIT/FILE are links to ../../blobs/HASH."""
    snapshot = tmp_path / "models--me--clip/snapshots/0123abc"
    blobs = snapshot.parent.parent / "blobs"
    state = sharded(snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"{number:064x}")
        file.symlink_to(f"../../blobs/{number:064x}")
    given = snapshot if source == "snapshot" else snapshot / "model.safetensors.index.json"
    assert imported(given, tmp_path / "out.safetensors") == 0
    assert equal(read_tower(tmp_path / "out.safetensors", ARCH)[0], state)
    save_file(moved(seed=2)[0], tmp_path / "b.safetensors")
    experts = ["--experts", given, tmp_path / "b.safetensors", "--out", tmp_path / "m.safetensors"]
    assert neulig("merge", "average", *experts)[0] == 0


def test_what_is_no_pickle_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a" * 10**6: 1}) + b"\xff" * 100)
    with pytest.raises(InputError) as told:
        read_checkpoint(path)
    assert len(str(told.value)) < 1000
