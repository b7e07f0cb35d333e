"""Task vectors held in memory, and the model that coefficients by layer and task merge them into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from neulig_ray.merging.models import NotFiniteInput, check_finite, is_batchnorm_statistic
from neulig_ray.weights.comparison import agree
from neulig_ray.weights.compatibility import check_specs
from neulig_ray.weights.fitting import check_integers
from neulig_ray.weights.sources import Source, State, StateSource


@dataclass(frozen=True)
class TaskVectors:
    """The parameters theta_0 of a base, and tau_t = theta_t - theta_0 of n experts, paired by name.

    A layer is one float parameter tensor; `base` has it in its shape, `deltas` as (n, numel), both float32.
    `buffers` are those of the merged model whatever the coefficients: BatchNorm statistics averaged over the
    experts and never extrapolated, counters of the first expert, and masks that hold infinite numbers.
    """

    base: Mapping[str, torch.Tensor]
    deltas: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]

    @classmethod
    def of(
        cls, base: State, experts: Mapping[str, State], device: torch.device | str = "cpu"
    ) -> "TaskVectors":
        """Copies on `device`; n + 1 models in float32.

        Raises InputError when the models' tensors do not correspond, and for NaN or infinite parameters.
        """
        sources: dict[str, Source] = {label: StateSource(state) for label, state in experts.items()}
        check_specs(
            {"the base": StateSource(base).specs} | {k: source.specs for k, source in sources.items()}
        )
        check_integers(sources)
        everyone = [StateSource(base), *sources.values()]
        theta, deltas, buffers = {}, {}, {}
        for name, tensor in base.items():
            if is_batchnorm_statistic(name):
                buffers[name] = torch.stack(
                    [state[name].to(device).float() for state in experts.values()]
                ).mean(0)
            elif not tensor.is_floating_point():
                buffers[name] = next(iter(experts.values()))[name].to(device, copy=True)
            else:
                stored = [state[name].detach() for state in experts.values()]
                rows = torch.stack([t.to(device).float().flatten() for t in stored])
                own = tensor.detach().to(device, torch.float32, copy=True)
                try:
                    check_finite(rows, name, tuple(experts), stored.__getitem__)
                    check_finite(own.view(1, -1), name, ["the base"], [tensor].__getitem__)
                except NotFiniteInput:
                    if not agree(everyone, name):
                        raise
                    buffers[name] = own  # a mask, say: no parameter
                    continue
                theta[name] = own
                deltas[name] = rows.sub_(own.flatten())
        return cls(theta, deltas, buffers)

    @property
    def names(self) -> tuple[str, ...]:
        """The L layers, in the order of the coefficients' rows."""
        return tuple(self.base)

    @property
    def n(self) -> int:
        return len(next(iter(self.deltas.values())))

    def uniform(self, scaling: float) -> torch.Tensor:
        """Task arithmetic's coefficients (L, n)."""
        any_layer = next(iter(self.deltas.values()))
        return any_layer.new_full((len(self.names), self.n), scaling)

    def merged(self, coefficients: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters theta_0 + sum_t lambda_lt tau_lt of each layer l, for coefficients (L, n)."""
        return {
            name: torch.addmv(self.base[name].flatten(), self.deltas[name].T, row).view(self.base[name].shape)
            for name, row in zip(self.names, coefficients, strict=True)
        }

    def pull_back(self, gradients: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The gradient (L, n) for the coefficients, from those for the merged layers; None counts as zero."""
        return torch.stack(
            [
                self.base[name].new_zeros(self.n)
                if gradient is None
                else self.deltas[name] @ gradient.flatten()
                for name, gradient in zip(self.names, gradients, strict=True)
            ]
        )

    def state(self, coefficients: torch.Tensor) -> dict[str, torch.Tensor]:
        """The whole merged state, buffers included, for coefficients (L, n)."""
        return {**self.merged(coefficients), **self.buffers}
