"""A storage that somebody else made: manifests and links that point outside, JSON without bounds (A2)."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neulig_ray.cli import main
from neulig_ray.documents import MOST_BYTES, MOST_DEPTH, bounded_json
from neulig_ray.errors import InputError
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.lookup import find, local_copy, tensors_of
from neulig_ray.storage.manifest import MANIFEST
from neulig_ray.storage.sharded_images import StoredImages, node_file
from neulig_ray.storage.storage import Storage

ONE = Artifact.of("expert", "one", 1, {"name": "one"})
HASH = "0" * 64
DEEP = "[" * 200_000 + "]" * 200_000


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the storage, which holds what a manifest's hash says."""
    file = tmp_path / "secret.safetensors"
    file.write_bytes(b"secret")
    return file


def manifest(storage: Storage, **change: Any) -> Path:
    whole = {"kind": "expert", "label": "one", "fingerprint": ONE.fingerprint, "files": {}, "info": {}}
    storage.write(f"{ONE.path}/{MANIFEST}", json.dumps({**whole, **change}).encode())
    return Path(storage.full(ONE.path))


def of(name: str) -> dict[str, Any]:
    return {"files": {name: {"sha256": HASH, "bytes": 6}}}


OUTSIDE = {
    "A2-parent": "../../../../secret.safetensors",
    "A2-absolute": "/etc/passwd.safetensors",
    "inner-parent": "a/../../x.safetensors",
    "dot": "./x.safetensors",
    "empty": "",
    "double-slash": "a//x.safetensors",
    "backslash": "..\\x.safetensors",
    "null": "a\0.safetensors",
    "the-manifest": MANIFEST,
}


@pytest.mark.parametrize("name", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_manifest_that_names_files_outside_is_refused_by_name(
    storage: Storage, secret: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = manifest(storage, **of(name))
    with pytest.raises(InputError, match="which is not one of its folder") as caught:
        storage.manifest(ONE)
    assert repr(name) in str(caught.value)
    with pytest.raises(InputError):
        tensors_of(storage, find(storage, "expert:one"))
    assert main(["storage", "verify", "--storage", storage.root]) == 1
    assert str(folder) in capsys.readouterr().out
    assert main(["storage", "prune", "--yes", "--storage", storage.root]) == 0
    assert f"{ONE.path} is kept" in capsys.readouterr().out
    assert secret.read_bytes() == b"secret"


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "A2-file": lambda folder, outside: (folder / "w.safetensors").symlink_to(outside / "secret.safetensors"),
    "relative": lambda folder, _: (folder / "w.safetensors").symlink_to("../../../../secret.safetensors"),
    "folder": lambda folder, outside: (folder.rename(outside / "away"), folder.symlink_to(outside / "away"))[
        1
    ],
    "kind": lambda folder, outside: (
        folder.parent.rename(outside / "away"),
        folder.parent.symlink_to(outside / "away"),
    )[1],
    "artifacts": lambda folder, outside: (
        folder.parent.parent.rename(outside / "away"),
        folder.parent.parent.symlink_to(outside / "away"),
    )[1],
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
def test_links_out_of_the_storage_are_not_followed(
    storage: Storage, secret: Path, link: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = manifest(storage, **of("w.safetensors"))
    link(folder, secret.parent)
    for use in (
        lambda: storage.load(ONE, "w.safetensors"),
        lambda: storage.write(f"{ONE.path}/w.safetensors", b"mine"),
        lambda: storage.sha256(f"{ONE.path}/w.safetensors"),
        lambda: storage.download(f"{ONE.path}/w.safetensors", secret.parent / "copy"),
        lambda: node_file(storage, ONE, "w.safetensors"),
        lambda: local_copy(storage, f"{ONE.path}/w.safetensors", secret.parent),
    ):
        with pytest.raises(InputError, match="link that leads out of the storage"):
            use()
    for command in (["ls"], ["verify"], ["prune", "--yes", "--imported"]):
        main(["storage", *command, "--storage", storage.root])
        assert "leads out of the storage" in "".join(capsys.readouterr())
    assert secret.read_bytes() == b"secret"
    if (secret.parent / "away").exists():
        assert list((secret.parent / "away").rglob(MANIFEST)), "nothing was removed through the link"


@pytest.mark.parametrize(
    "names",
    [("../../../images.npy",), ("/etc/hostname",), ("a.npy", "../b.npy")],
    ids=["A2-shard", "absolute", "second"],
)
def test_shards_outside_the_artifact_are_not_opened(storage: Storage, names: tuple[str, ...]) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 1, 1, 3), np.uint8))
    for path in (f"{ONE.path}/a.npy", "images.npy", "artifacts/expert/b.npy"):
        storage.write(path, stream.getvalue())
    assert len(StoredImages(storage, ONE, ("a.npy",))) == 2
    with pytest.raises(InputError, match="no path within the storage"):
        StoredImages(storage, ONE, names)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "a\0b"])
def test_no_path_leads_out(storage: Storage, path: str) -> None:
    for use in (storage.read, storage.size, storage.delete_tree, storage.sha256):
        with pytest.raises(InputError, match="no path within the storage"):
            use(path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(storage: Storage) -> None:
    folder = manifest(storage, **of("w.safetensors"))
    os.mkfifo(folder / "w.safetensors")
    assert main(["storage", "verify", "--storage", storage.root]) == 1


TEXTS = {
    "A2-deep-list": DEEP,
    "A2-deep-object": '{"a":' * 200_000 + "1" + "}" * 200_000,
    "just-too-deep": "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1),
    "unclosed": "[" * 200_000,
    "digits": "9" * 10_000,
    "empty": "",
    "not-utf-8": b"\xff\xfe\xfa",
    "huge": "[" + " " * MOST_BYTES + "]",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_json_without_bounds_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match=r"^here"):
        bounded_json(text, "here")


def test_json_within_the_bounds_is_read() -> None:
    depth = MOST_DEPTH
    assert bounded_json("[" * depth + "]" * depth, "here") is not None
    assert bounded_json(b'{"a": [1, {"b": null}]}', "here") == {"a": [1, {"b": None}]}


BROKEN: dict[str, bytes] = {
    "A2-deep": f'{{"files": {{}}, "info": {DEEP}}}'.encode(),
    "list": b"[]",
    "no-files": b'{"info": {}}',
    "files-list": b'{"files": [], "info": {}}',
    "no-hash": b'{"files": {"a": {"bytes": 1}}, "info": {}}',
    "text": b"not at all",
    "nulls": b"\0" * 100,
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_told_and_breaks_no_command(
    storage: Storage, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Artifact.of("expert", "good", 1, {})
    storage.commit(good, {"a.safetensors": b"a"}, {})
    storage.write(f"{ONE.path}/{MANIFEST}", data)
    place = storage.full(f"{ONE.path}/{MANIFEST}")
    assert main(["storage", "ls", "--storage", storage.root]) == 0
    assert main(["storage", "verify", "--storage", storage.root]) == 1
    assert place in capsys.readouterr().out
    assert main(["storage", "prune", "--yes", "--storage", storage.root]) == 0
    assert place in capsys.readouterr().out
    assert storage.exists(ONE), "not ours to judge"
    assert not storage.exists(good)


def test_a_manifest_of_absurd_size_is_not_read_whole(storage: Storage) -> None:
    folder = manifest(storage)
    with (folder / MANIFEST).open("r+b") as stream:
        stream.truncate(1 << 40)  # a sparse terabyte
    with pytest.raises(InputError, match="more than 32 MiB of JSON"):
        storage.manifest(ONE)


def test_results_that_name_anything_remove_nothing(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.commit(ONE, {"a": b"a"}, {})
    for text in (DEEP, "[]", '{"artifacts": "abc"}', '{"artifacts": [["x"]]}', ""):
        storage.write("exp/results.json", text.encode())
        assert main(["storage", "prune", "--yes", "--storage", storage.root]) == 2
        assert "exp/results.json" in capsys.readouterr().err
        assert storage.exists(ONE)
