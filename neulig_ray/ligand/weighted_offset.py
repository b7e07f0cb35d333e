"""L_a, the weighted-offset term of the ligand's loss, as a quadratic form in beta."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from neulig_ray.merging.parameters import ExpertStack

Form = Literal["scalar", "gram"]
CHUNK = 1 << 20  # parameters read at a time, as float64


@dataclass(frozen=True)
class Offsets:
    """What L_a needs of the experts' offsets, measured once for all combinations.

    Offsets from the first model: `sums` (K,) of their entries and `gram` (K, K), their inner products;
    float64. A combination's offsets from its own mean follow from these.
    """

    keys: tuple[str, ...]
    sums: torch.Tensor
    gram: torch.Tensor

    @classmethod
    def measure(cls, stack: ExpertStack, *, include_buffers: bool = False) -> "Offsets":
        """Over the float parameters; `include_buffers` adds BatchNorm statistics and integer counters.

        The reference includes both (protocol `paper`), and then they outweigh the parameters: keep it off.
        """
        k = len(stack.keys)
        sums, gram = torch.zeros(k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
        size = stack.size if include_buffers else stack.num_parameters
        vectors = [v[:size] for v in stack.vectors.values()]
        blocks = [[v[at : at + CHUNK] for v in vectors] for at in range(0, size, CHUNK)]
        if include_buffers:
            counters = [[t.reshape(-1) for t in c.values()] for c in stack.counters.values()]
            blocks += [[torch.cat(c) for c in counters]] if counters[0] else []
        for block in blocks:
            values = torch.stack([b.to("cpu", torch.float64) for b in block])
            offsets = values - values[0]  # from one of them, so that equal models give exact zeros
            sums += offsets.sum(1)
            gram += offsets @ offsets.T
        return cls(stack.keys, sums, gram)

    def scalar(self, combination: Sequence[str]) -> torch.Tensor:
        """s (n,) float64: the sums of the offsets from this combination's own mean, standardised.

        As in the reference's code the standard deviation is the unbiased one, so that two collaborators have
        s = (0.7071, -0.7071) in some order whatever they are. Zeros where all sums are equal.
        """
        sums = self.sums[self._indices(combination)]
        sums = sums - sums[0]
        sums = sums - sums.mean()
        if len(sums) < 2 or float(std := sums.std()) == 0:
            return torch.zeros_like(sums)
        return sums / std

    def normalised_gram(self, combination: Sequence[str]) -> torch.Tensor:
        """G (n, n) float64: inner products of the offsets from this combination's own mean, mean diagonal 1.

        Zeros where all collaborators are equal.
        """
        chosen = self._indices(combination)
        gram = self.gram[chosen][:, chosen]
        gram = gram - gram[:1] - gram[:, :1] + gram[0, 0]
        gram = gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()
        scale = gram.trace() / len(chosen)
        return gram / scale if float(scale) > 0 else torch.zeros_like(gram)

    def form(self, combination: Sequence[str], kind: Form) -> torch.Tensor:
        """Q (n, n) float32 of L_a = mean over images of beta^T Q beta.

        `scalar`: (beta . s)^2, so Q = s s^T; `gram`: Q = G.
        """
        if kind == "scalar":
            s = self.scalar(combination)
            return torch.outer(s, s).float()
        return self.normalised_gram(combination).float()

    def _indices(self, combination: Sequence[str]) -> list[int]:
        return [self.keys.index(key) for key in combination]


def weighted_offset_loss(beta: torch.Tensor, forms: torch.Tensor) -> torch.Tensor:
    """beta^T Q beta for each image, (members, batch): beta (members, batch, n), forms (members, n, n)."""
    return (torch.bmm(beta, forms) * beta).sum(-1)
