"""Portland, the paper's ligand: CoopVecs from a linear layer and a softmax."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from neulig_ray.ligand.data import Combination, combination_key
from neulig_ray.seeds import stable_generator


class Portland(nn.Module):
    """beta(x) = softmax(A [z_1; ...; z_n] + b) for several combinations of n collaborators side by side.

    arXiv 2503.01268. `weight` (members, n, n d) and `bias` (members, n) hold a member for each combination;
    members share nothing. `normalised`: each z_i is brought to length 1 before the linear map.
    """

    def __init__(
        self,
        combinations: Sequence[Combination],
        weight: torch.Tensor,
        bias: torch.Tensor,
        *,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        members, n = len(combinations), len(combinations[0])
        if weight.shape[:2] != (members, n) or bias.shape != (members, n) or weight.shape[2] % n:
            raise ValueError(f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} for {combinations}")
        self.combinations = tuple(tuple(c) for c in combinations)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.normalised = normalised

    @classmethod
    def initialised(
        cls, combinations: Sequence[Combination], embedding_dim: int, seed: int, *, normalised: bool = False
    ) -> "Portland":
        """Members as nn.Linear begins (uniform within 1 / sqrt(fan-in)).

        Each is drawn from (seed, its combination) alone, whichever others stand beside it.
        """
        n = len(combinations[0])
        fan_in = n * embedding_dim
        bound = 1 / math.sqrt(fan_in)
        streams = [stable_generator("portland", seed, combination_key(c)) for c in combinations]
        drawn = torch.tensor(np.stack([s.uniform(-bound, bound, (n, fan_in + 1)) for s in streams])).float()
        weight, bias = drawn[..., :-1].contiguous(), drawn[..., -1].contiguous()
        return cls(combinations, weight, bias, normalised=normalised)

    @property
    def n(self) -> int:
        return self.weight.shape[1]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """CoopVecs (members, batch, groups = 1, n) of concatenated embeddings z (members, batch, n d)."""
        if self.normalised:
            z = normalize(z.view(*z.shape[:2], self.n, -1), dim=-1).flatten(2)
        logits = torch.baddbmm(self.bias.unsqueeze(1), z, self.weight.transpose(1, 2))
        return logits.softmax(-1).unsqueeze(2)

    def select(self, member: int) -> "Portland":
        """One member alone, a copy."""
        return Portland(
            self.combinations[member : member + 1 or None],
            self.weight.detach()[member].unsqueeze(0).clone(),
            self.bias.detach()[member].unsqueeze(0).clone(),
            normalised=self.normalised,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the tensors `weight` and `bias`, for safetensors; `combinations` is its metadata."""
        return {"weight": self.weight.detach().clone(), "bias": self.bias.detach().clone()}

    @classmethod
    def from_state(
        cls,
        combinations: Sequence[Combination],
        state: Mapping[str, torch.Tensor],
        *,
        normalised: bool = False,
    ) -> "Portland":
        return cls(combinations, state["weight"].clone(), state["bias"].clone(), normalised=normalised)

    def finished(self, state: Mapping[str, torch.Tensor]) -> "Portland":
        """The ligand that trained to `state`, as it is stored and used."""
        return Portland.from_state(self.combinations, state, normalised=self.normalised)
