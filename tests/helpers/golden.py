"""Results of the published implementations on small random problems: what our methods are held against.

The whole collection lies beside the checkout (`../shared/golden`, where CI has it). The files of the methods
that are built lie, byte for byte the same, in `tests/golden/merging.tar.xz`: they share most of their inputs,
so that the archive is a seventh of their size. Each test runs on both, by `goldens`.
"""

import fnmatch
import functools
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "golden"
KEPT = REPOSITORY / "tests" / "golden" / "merging.tar.xz"

# Which test file answers for which files.
FAMILIES: dict[str, tuple[str, ...]] = {
    "elementwise": (
        "average_*", "consensus_*", "dare_*", "emr_*", "magmax_*", "mergekit_breadcrumbs_n*",
        "mergekit_breadcrumbs_g01_*", "mergekit_dare_*", "mergekit_linear_*", "mergekit_ties_*", "pcb_*",
        "tact_tall_*", "tact_ties_*", "tall_masks_*", "task_arithmetic_*", "ties_*",
    ),
    "spectral": (
        "iso_*", "mergekit_karcher_*", "*_slerp_*", "*_nuslerp_*", "*_multislerp_*", "tsv_m_*",
    ),
    "data": ("adamerging_*", "fisher_*", "regmean_*", "wemoe_*"),
    "waiting for issues of their own": (
        "adarank_*", "aswudi_*", "cart_*", "dc_merge_*", "della_*", "esm_*", "featcal_*", "fusionbench_*",
        "iwudi_*", "lines_*", "mergekit_arcee_fusion_*", "mergekit_breadcrumbs_ties_*", "mergekit_della_*",
        "mergekit_model_stock_*", "mergekit_nearswap_*", "mergekit_ram_*", "mergekit_ramplus_*",
        "mergekit_sce_*", "prodistill_*", "rebasin_*", "repair_*", "surgery_*", "svc_*", "swudi_*",
        "tact_head_*", "tact_vit_*", "wudi_*", "zipit_*",
    ),
}  # fmt: skip


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
    """Parameters for `pytest.mark.parametrize`: each file that matches, the kept one and the shared one.

    Without the shared folder, one skipped test says so; and so it does where neither has such a file: the
    collection may hold others elsewhere (two or five experts, other seeds, SLERP).
    """
    found = [
        pytest.param(Golden(name, KEPT), id=f"kept-{name}") for name in kept_names() if _match(name, patterns)
    ]
    known = {pattern for some in FAMILIES.values() for pattern in some}
    assert found or known.issuperset(patterns), f"{patterns}: nothing in {KEPT.name}"
    if not SHARED.is_dir():
        reason = "no shared/golden beside the checkout: only the selection in tests/golden"
        return [*found, pytest.param(None, id="shared", marks=pytest.mark.skip(reason=reason))]
    found += [
        pytest.param(Golden(name, SHARED), id=f"shared-{name}")
        for name in shared_names()
        if _match(name, patterns)
    ]
    reason = f"no file is called {' or '.join(patterns)}"
    return found or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]


def check_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Fails unless all tensors are equal: masks and permutations have no tolerance."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def kept_names() -> list[str]:
    """The files of the archive, without their ending."""
    return sorted(name.removesuffix(".safetensors") for name in _kept())


def shared_names() -> list[str]:
    """The files of the shared folder, without their ending."""
    return sorted(path.stem for path in SHARED.glob("*.safetensors"))


def family(name: str) -> str:
    """Who answers for a file; fails for one that nobody knows."""
    found = [family for family, patterns in FAMILIES.items() if _match(name, patterns)]
    assert len(found) == 1, f"{name}: in {found or 'no family'}; enter it in FAMILIES and test it"
    return found[0]


def _match(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@functools.cache
def _kept() -> dict[str, bytes]:
    with tarfile.open(KEPT, "r:xz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: stream.read() for name, stream in files.items() if stream is not None}
