"""Results of the published implementations on small random problems: what our methods are held against.

`tests/golden/merging.tar.xz` holds, byte for byte, the files of the methods that are built: they share most
of their inputs, so that the archive is a seventh of their size. The environment variable NEULIG_GOLDEN names
a folder with the whole collection, or another one. Each test runs on both, by `goldens`.
"""

import fnmatch
import functools
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from golden_files import KEPT, NO_FILE, collection

SHARED = collection()

# Files of methods that are not built yet: no test reads them.
WAITING: tuple[str, ...] = (
    "adarank_*", "aswudi_*", "cart_*", "dc_merge_*", "della_*", "esm_*", "featcal_*", "fusionbench_*",
    "iwudi_*", "lines_*", "mergekit_arcee_fusion_*", "mergekit_breadcrumbs_ties_*", "mergekit_della_*",
    "mergekit_model_stock_*", "mergekit_nearswap_*", "mergekit_ram_*", "mergekit_ramplus_*",
    "mergekit_sce_*", "prodistill_*", "rebasin_*", "repair_*", "surgery_*", "svc_*", "swudi_*",
    "tact_head_*", "tact_vit_*", "wudi_*", "zipit_*",
)  # fmt: skip

# Patterns of tests whose files the kept selection lacks: a collection may hold some.
ELSEWHERE: tuple[str, ...] = ("*_slerp_*", "*_nuslerp_*")


@dataclass(frozen=True)
class Golden:
    """One file: the inputs, the reference's result, and how near ours must come.

    `hyper`: the reference's hyper-parameters, in its own words. `notes`: what surrounded its code.
    """

    name: str
    place: Path

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def _content(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        if self.place == KEPT:
            content = _kept()[f"{self.name}.safetensors"]
        else:
            content = (self.place / f"{self.name}.safetensors").read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return json.loads(header["__metadata__"]["golden"]), safetensors.torch.load(content)

    @property
    def about(self) -> dict[str, Any]:
        return self._content[0]

    @property
    def hyper(self) -> dict[str, Any]:
        return dict(self.about["hyper_parameters"])

    @property
    def tolerance(self) -> float:
        """The advised largest absolute difference."""
        return float(self.about["tolerance"])

    @property
    def n(self) -> int:
        return int(self.about["n_experts"])

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything in the file, by its full key."""
        return self._content[1]

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose keys begin with `prefix/`, without it: "base", "out", "out_aux/mask0"."""
        start = f"{prefix}/"
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def groups(self, prefix: str) -> list[dict[str, torch.Tensor]]:
        """One group for each expert, as far as there are: "expert", "gram", "out/task"."""
        return [found for i in range(self.n) if (found := self.group(f"{prefix}{i}"))]

    @property
    def base(self) -> dict[str, torch.Tensor]:
        return self.group("base")

    @property
    def experts(self) -> dict[str, dict[str, torch.Tensor]]:
        """label -> state dict, in merge order."""
        return {f"expert{i}": state for i, state in enumerate(self.groups("expert"))}

    @property
    def out(self) -> dict[str, torch.Tensor]:
        return self.group("out")

    def differences(
        self, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, float]:
        """Tensors that are further than the tolerance from what is expected (`out`), by how much.

        Fails where names or shapes differ.
        """
        expected = self.out if expected is None else expected
        assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
        far = {}
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape, name
            distance = float((found[name].double() - tensor.double()).abs().max())
            if not distance <= self.tolerance:
                far[name] = distance
        return far

    def check(
        self, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Fails, naming tensors and distances, unless all are within the tolerance."""
        far = self.differences(found, expected)
        assert not far, f"{self.name}: beyond {self.tolerance}: {far}"


def goldens(*patterns: str) -> Sequence[Any]:
    """Parameters for `pytest.mark.parametrize`: each file that matches, kept or of the collection.

    Where neither has such a file, one that is marked so that its test does not exist.
    """
    kept = [Golden(name, KEPT) for name in kept_names() if matches(name, patterns)]
    assert kept or {*patterns} <= {*ELSEWHERE}, f"{patterns}: nothing in {KEPT.name}"
    shared = [Golden(name, SHARED) for name in shared_names() if matches(name, patterns)] if SHARED else []
    found = [pytest.param(golden, id=f"kept-{golden}") for golden in kept]
    found += [pytest.param(golden, id=f"shared-{golden}") for golden in shared]
    return found or [pytest.param(None, id="none", marks=getattr(pytest.mark, NO_FILE))]


def check_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Fails unless all tensors are equal: masks and permutations have no tolerance."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def kept_names() -> list[str]:
    """The files of the archive, without their ending."""
    return sorted(name.removesuffix(".safetensors") for name in _kept())


def shared_names() -> list[str]:
    """The files of the collection, without their ending."""
    return sorted(path.stem for path in SHARED.glob("*.safetensors")) if SHARED else []


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@functools.cache
def _kept() -> dict[str, bytes]:
    with tarfile.open(KEPT, "r:xz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: stream.read() for name, stream in files.items() if stream is not None}
