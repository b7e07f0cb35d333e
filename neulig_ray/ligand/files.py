"""Ligands as safetensors: the stacked weights, and in the header which combination each member is for.

The weights are one linear map on concatenated embeddings as the experts give them, whatever they were trained
on; with `normalised: true` in the header it is one on embeddings of length 1 each.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load

from neulig_ray.documents import bounded_json
from neulig_ray.ligand.portland import Portland
from neulig_ray.weights.metadata import FORMAT, HEADER_KEY, RESERVED, file_metadata
from neulig_ray.weights.tensor_writer import to_bytes


def ligand_bytes(portland: Portland, about: Mapping[str, Any]) -> bytes:
    """The file of a ligand; `about`: plain JSON values to record in its header."""
    header = {"format": FORMAT, "kind": "ligand", "combinations": portland.combinations, **about}
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
    """The ligand of these tensors, as its header has it; LookupError, TypeError or ValueError for another."""
    combinations = [tuple(map(str, combination)) for combination in header["combinations"]]
    normalised = header.get("normalised", False)
    if not isinstance(normalised, bool):
        raise TypeError(f"its header has normalised {normalised!r}, which is true or false")
    return Portland.from_state(combinations, state, normalised=normalised)
