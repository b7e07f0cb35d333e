"""Portland, the paper's ligand: CoopVecs from a linear layer and a softmax."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from neulig_ray.ligand.data import Combination, combination_key
from neulig_ray.ligand.gate import EXPERTS, GateSpec
from neulig_ray.seeds import stable_generator

LINEAR = ("weight", "bias")
HIDDEN = ("hidden_weight", "hidden_bias")


class Portland(nn.Module):
    """beta(x) = softmax(A v + b), v what the gate sees of x, for several ligands of n experts side by side.

    arXiv 2503.01268, where v = [z_1; ...; z_n]. `weight` (members, n, inputs) and `bias` (members, n) hold a
    member for each combination and seed; members share nothing. With a hidden layer of `gate.hidden` units,
    `hidden_weight` (members, hidden, inputs) and `hidden_bias` (members, hidden) with a ReLU come before it.
    `normalised`: each source's view is brought to length 1 first. Where members have fewer sources than
    others (origins), the columns of those that they lack are 0.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    hidden_weight: nn.Parameter
    hidden_bias: nn.Parameter

    def __init__(
        self,
        combinations: Sequence[Combination],
        weight: torch.Tensor,
        bias: torch.Tensor,
        hidden_weight: torch.Tensor | None = None,
        hidden_bias: torch.Tensor | None = None,
        *,
        seeds: Sequence[int] | None = None,
        gate: GateSpec = EXPERTS,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        members, n, hidden = len(combinations), len(combinations[0]), gate.hidden
        self.combinations = tuple(tuple(c) for c in combinations)
        self.seeds = tuple(seeds) if seeds is not None else (0,) * members
        self.gate = gate
        self.normalised = normalised
        given = {"weight": weight, "bias": bias}
        if hidden_weight is not None and hidden_bias is not None:
            given |= {"hidden_weight": hidden_weight, "hidden_bias": hidden_bias}
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        inputs = shapes[HIDDEN[0] if HIDDEN[0] in shapes else LINEAR[0]][-1]
        expected = {"weight": (members, n, hidden or inputs), "bias": (members, n)}
        if hidden:
            expected |= {"hidden_weight": (members, hidden, inputs), "hidden_bias": (members, hidden)}
        if shapes != expected or len(self.seeds) != members or inputs % self._most_sources:
            raise ValueError(f"tensors {shapes} for {combinations}, seeds {self.seeds}, {gate}")
        for name, tensor in given.items():
            setattr(self, name, nn.Parameter(tensor))

    @classmethod
    def initialised(
        cls,
        combinations: Sequence[Combination],
        inputs: int,
        seed: int | Sequence[int],
        *,
        gate: GateSpec = EXPERTS,
        normalised: bool = False,
    ) -> "Portland":
        """Members as nn.Linear begins (uniform within 1 / sqrt(fan-in)); `seed`: of all, or of each.

        Each is drawn from its seed and its combination alone, whichever others stand beside it.
        """
        n = len(combinations[0])
        seeds = (seed,) * len(combinations) if isinstance(seed, int) else seed
        streams = [
            stable_generator("portland", seed, combination_key(c))
            for seed, c in zip(seeds, combinations, strict=True)
        ]

        def layer(fan_in: int, units: int) -> tuple[torch.Tensor, torch.Tensor]:
            bound = 1 / math.sqrt(fan_in)
            drawn = np.stack([s.uniform(-bound, bound, (units, fan_in + 1)) for s in streams])
            numbers = torch.tensor(drawn).float()
            return numbers[..., :-1].contiguous(), numbers[..., -1].contiguous()

        layers = [(HIDDEN, layer(inputs, gate.hidden))] if gate.hidden else []
        layers.append((LINEAR, layer(gate.hidden or inputs, n)))
        state = {name: tensor for names, own in layers for name, tensor in zip(names, own, strict=True)}
        return cls.from_state(combinations, state, seeds=seeds, gate=gate, normalised=normalised)

    @classmethod
    def from_state(
        cls, combinations: Sequence[Combination], state: Mapping[str, torch.Tensor], **about: Any
    ) -> "Portland":
        """Of copies of the tensors of `state`; `about` as a ligand has it."""
        tensors = (state[name].clone() if name in state else None for name in HIDDEN)
        return cls(combinations, state["weight"].clone(), state["bias"].clone(), *tensors, **about)

    @property
    def n(self) -> int:
        return self.weight.shape[1]

    @property
    def inputs(self) -> int:
        """Numbers of an image that the gate gets."""
        return (self.hidden_weight if self.gate.hidden else self.weight).shape[2]

    @property
    def _most_sources(self) -> int:
        return max(len(self.gate.sources(combination)) for combination in self.combinations)

    @property
    def about(self) -> dict[str, Any]:
        """What tells how it is to be called, for a copy with other weights."""
        return {"seeds": self.seeds, "gate": self.gate, "normalised": self.normalised}

    def logits(self, view: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Before the softmax: (members, batch, n) of views (members, batch, inputs).

        `keep`: (members, batch, hidden), what dropout multiplies the hidden units by.
        """
        if self.normalised:
            parts = view.view(*view.shape[:2], self._most_sources, -1)
            view = normalize(parts, dim=-1).flatten(2)
        if self.gate.hidden:
            found = torch.baddbmm(self.hidden_bias.unsqueeze(1), view, self.hidden_weight.transpose(1, 2))
            view = found.relu() if keep is None else found.relu() * keep
        return torch.baddbmm(self.bias.unsqueeze(1), view, self.weight.transpose(1, 2))

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        """CoopVecs (members, batch, groups = 1, n) of views (members, batch, inputs)."""
        return self.logits(view).softmax(-1).unsqueeze(2)

    def member(self, combination: Combination, seed: int | None = None) -> int:
        """The place of a combination's ligand, of this seed where there are several; ValueError for none."""
        for place, (own, of) in enumerate(zip(self.combinations, self.seeds, strict=True)):
            if own == combination and seed in (None, of):
                return place
        raise ValueError(f"no ligand of {combination_key(combination)} with seed {seed}")

    def select(self, member: int) -> "Portland":
        """One member alone, a copy."""
        state = {name: tensor[member].unsqueeze(0).clone() for name, tensor in self.state().items()}
        first = (HIDDEN if self.gate.hidden else LINEAR)[0]
        own = len(self.gate.sources(self.combinations[member])) * self.inputs // self._most_sources
        state[first] = state[first][..., :own].contiguous()
        about = {**self.about, "seeds": (self.seeds[member],)}
        return Portland.from_state((self.combinations[member],), state, **about)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the tensors, for safetensors; combinations, seeds and gate are its metadata."""
        return {name: tensor.detach().clone() for name, tensor in self.named_parameters()}

    def finished(self, state: Mapping[str, torch.Tensor]) -> "Portland":
        """The ligand that trained to `state`, as it is stored and used."""
        return Portland.from_state(self.combinations, state, **self.about)
