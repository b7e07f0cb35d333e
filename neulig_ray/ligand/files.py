"""Ligands as safetensors: the stacked weights, and in the header which combination each member is for.

The weights are one linear map on what the gate sees as it is, whatever they were trained on; with
`normalised: true` in the header it is one on views of length 1 each. `gate` says whose views these are where
they are not the experts' embeddings, `hidden` how many units lie between.
"""

import json
from collections.abc import Mapping
from typing import Any, get_args

import torch
from safetensors.torch import load

from neulig_ray.documents import bounded_json
from neulig_ray.ligand.gate import GateSpec, Sees
from neulig_ray.ligand.portland import HIDDEN, LINEAR, Portland
from neulig_ray.weights.metadata import FORMAT, HEADER_KEY, RESERVED, file_metadata
from neulig_ray.weights.tensor_writer import to_bytes


def ligand_bytes(portland: Portland, about: Mapping[str, Any]) -> bytes:
    """The file of a ligand; `about`: plain JSON values to record in its header."""
    header = {"format": FORMAT, "kind": "ligand", "combinations": portland.combinations, **about}
    header["seeds"] = list(portland.seeds)
    header |= portland.gate.identity
    if portland.normalised:
        header["normalised"] = True
    return to_bytes(portland.state(), file_metadata(header))


def read_ligand(data: bytes) -> Portland:
    """The ligand of a file's bytes."""
    state = load(data)
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])[RESERVED]  # JSON that the library has read
    header = bounded_json(metadata[HEADER_KEY], "a ligand's header")
    return described(header, state)


def described(header: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Portland:
    """The ligand of these tensors, as its header has it; LookupError, TypeError or ValueError for another.

    Files from before there were several seeds have none, or a single one: `seed`.
    """
    combinations = [tuple(map(str, combination)) for combination in header["combinations"]]
    normalised = header.get("normalised", False)
    if not isinstance(normalised, bool):
        raise TypeError(f"its header has normalised {normalised!r}, which is true or false")
    seeds = header.get("seeds", [header.get("seed", 0)] * len(combinations))
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise TypeError(f"its header has seeds {seeds!r}, which are integers")
    sees, hidden = header.get("gate", "experts"), header.get("hidden", 0)
    if sees not in get_args(Sees) or type(hidden) is not int or hidden < 0:
        raise ValueError(f"its header has the gate {sees!r} with {hidden!r} hidden units")
    gate = GateSpec(sees=sees, hidden=hidden)
    if unknown := state.keys() - {*LINEAR, *HIDDEN}:
        raise ValueError(f"it holds the tensor {min(unknown)!r}, which no ligand has")
    return Portland.from_state(combinations, state, seeds=seeds, gate=gate, normalised=normalised)
