"""Running a streamed method over whole models, in memory that does not grow with their number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from neulig_ray.errors import InputError, NotFinite
from neulig_ray.merging.declare.method import Method
from neulig_ray.merging.declare.per_tensor import PerTensorMethod
from neulig_ray.merging.masks import MaskedModel, empty_masks, masked_specs, pack_masks
from neulig_ray.merging.models import (
    EXTREME,
    Models,
    NotFiniteInput,
    Piece,
    check_finite,
    is_batchnorm_statistic,
)
from neulig_ray.weights.compatibility import check_statistics
from neulig_ray.weights.sources import Sink, Source, State, StateSink, StateSource, as_source
from neulig_ray.weights.tensor_file import Spec

Buffers = Literal["average", "base"]
Model = State | Source | nn.Module | Path | str


@dataclass(frozen=True)
class Merge:
    """A method with its resolved options and the rule for buffers, over some models.

    `task`: of a masked method, the index of the one expert whose dense model is to be written.
    """

    method: PerTensorMethod
    models: Models
    options: Mapping[str, Any]
    buffers: Buffers = "average"
    task: int | None = None

    @classmethod
    def of(
        cls,
        method: Method,
        models: Models,
        options: Mapping[str, Any] | None = None,
        buffers: Buffers = "average",
        task: int | None = None,
    ) -> "Merge":
        """Raises InputError for a method that does not stream, a missing base, and wrong options."""
        if not isinstance(method, PerTensorMethod):
            raise InputError(
                f"{method.name} is not a method that merges parameters tensor by tensor: its kind is "
                f"{method.kind}" + (f", and it needs {', '.join(method.needs)}" if method.needs else "")
            )
        if not models.size:
            raise InputError(
                f"{models.labels[0]!r} holds no float parameter ({len(models.specs)} tensors): there is "
                "nothing to merge"
            )
        if models.base is None and (method.needs_base or buffers == "base"):
            raise InputError(f"{method.name} with buffers {buffers!r} needs the base model: give its origin")
        if method.needs_statistics and not models.statistics:
            raise InputError(f"{method.name} needs what is measured on each expert: give its statistics")
        resolved = method.resolve(options or {})
        method.check_counts(resolved, models.n)
        if method.needs_statistics:
            found = {label: s.specs for label, s in zip(models.labels, models.statistics, strict=True)}
            check_statistics(models.specs, found, elementwise=method.elementwise)
        if method.precondition is not None:
            method.call(method.precondition, models, options=resolved)
        return cls(method, models, resolved, buffers, task)

    def specs(self, dtype: torch.dtype | None = None) -> dict[str, Spec]:
        """What the merged file holds. Floats keep the first expert's dtype unless `dtype` is given."""
        found = {
            name: Spec(spec.shape, dtype if dtype and spec.dtype.is_floating_point else spec.dtype)
            for name, spec in self.models.specs.items()
        }
        return masked_specs(found, self.models.names, self.models.n) if self._masked else found

    @property
    def _masked(self) -> bool:
        return self.method.masked and self.task is None

    def run(self, sink: Sink) -> None:
        """Merge into `sink`. Raises InputError for NaN in an input, NotFinite for NaN in the result.

        A tensor with infinite numbers or NaN that is bit by bit the same in all models, as masks are, is
        copied. Such tensors are looked for when the first one is met; then everything begins anew.
        """
        while True:
            try:
                self._run(sink)
            except (NotFiniteInput, NotFinite):
                if not self.models.set_constants_aside():
                    raise
                if not self.models.size:
                    raise InputError(
                        f"{self.models.labels[0]!r} holds no float parameter that differs between the "
                        "models: there is nothing to merge"
                    ) from None
            else:
                return

    def _run(self, sink: Sink) -> None:
        models, method = self.models, self.method
        survey = None
        if method.survey is not None:
            survey = method.call(method.survey, models, options=self.options)
        rescalers = getattr(survey, "rescalers", None)
        rescalers = torch.ones(models.n) if rescalers is None else rescalers
        pieces = models.pieces(models.names, method.elementwise)
        kept = [name for name in models.specs if name not in set(models.names)]

        def work(piece: Piece) -> None:
            tensors, known = models.inputs(piece, method.elementwise)
            try:
                found = method.call(method.function, tensors, options=self.options, survey=survey, **known)
            except RuntimeError as error:  # torch's own for an option that is no float32
                if "without overflow" not in str(error):
                    raise
                raise self._not_finite(piece.name, tensors) from error
            if self._masked:
                shared, masks = found
                sink.write(f"base/{piece.name}", known["base"], piece.start)
                sink.write(f"shared/{piece.name}", shared, piece.start)
                pack_masks(sink, piece, masks, models.specs[piece.name].numel)
                found = shared
            else:
                if self.task is not None:
                    shared, masks = found
                    found = known["base"] + rescalers[self.task] * masks[self.task] * shared
                sink.write(piece.name, found, piece.start)
            if not found.sum().isfinite() and not found.isfinite().all():
                raise self._not_finite(piece.name, tensors)

        for _ in models.each("merging", pieces, work):
            pass
        prefix = "base/" if self._masked else ""
        for name in kept:
            self._keep(name, sink, prefix + name)
        if self._masked:
            for name in models.constants:
                empty_masks(sink, name, models.specs[name].numel, models.n)
            sink.write("rescalers", rescalers)

    def _not_finite(self, name: str, tensors: Any) -> NotFinite:
        """The error for a result that is not finite, though `tensors` are; names options that exist."""
        schema = self.method.schema
        told = f"{self.method.name} gives NaN or infinite values in {name!r}"
        if self.options:
            told += f" with the options {dict(self.options)}"
        remedies = []
        if "scaling" in schema:
            remedies.append("use a smaller scaling")
        elif "weights" in schema and self.options.get("normalize") is False:
            remedies.append("use smaller weights")
        largest = max(float(tensor.abs().max()) for tensor in tensors if tensor.numel())
        if largest > EXTREME or not remedies:
            remedies.append(
                f"leave out models with numbers as large as {largest:.3g} there, or scale them down: merges "
                "are computed in float32, which ends at 3.4e38"
            )
        return NotFinite(f"{told}: {', or '.join(remedies)}")

    def _keep(self, name: str, sink: Sink, target: str) -> None:
        """Buffers by the one rule: BatchNorm statistics averaged or the base's, what is no parameter copied.

        They are never extrapolated: a task vector on running variances gives negative ones.
        """
        models = self.models
        if is_batchnorm_statistic(name) and name not in models.copied:
            try:
                sink.write(target, self._statistic(name))
            except (NotFiniteInput, NotFinite):
                if not models.same_in_all(name):
                    raise
            else:
                return
        source = models.base if self.buffers == "base" and models.base is not None else models.sources[0]
        numel, step = models.specs[name].numel, models.piece_size
        for at in range(0, numel, step):
            sink.write(target, source.read(name, at, min(at + step, numel)), at)

    def _statistic(self, name: str) -> torch.Tensor:
        models, base = self.models, self.models.base
        if self.buffers == "base" and base is not None:
            found = base.read(name)
            check_finite(found[None], name, ["the base"])
            return found
        rows = torch.stack([source.read(name).float() for source in models.sources])
        check_finite(rows, name, models.labels, lambda i: models.sources[i].read(name))
        found = rows.mean(0)
        if not found.isfinite().all():
            raise self._not_finite(name, rows)
        return found


def merge_with(
    method: Method,
    experts: Mapping[str, Model],
    base: Model | None = None,
    options: Mapping[str, Any] | None = None,
    buffers: Buffers = "average",
    *,
    statistics: Sequence[Model] = (),
    threads: int = 1,
) -> dict[str, torch.Tensor]:
    """The state that a streamed method merges `experts` into, in memory.

    `experts`: label -> model, in the order of the merge; a model is a state dict, a torch module, or the path
    of a safetensors file. The floats of the result are float32, whatever came in; all else keeps its dtype.
    For a masked method: the tensors of `MaskedModel`.

    Raises InputError for what is no model, and as `Models` and `Merge.of` do.
    """
    if not isinstance(method, Method):
        raise InputError(
            f"{method!r} is no method: give one of neulig_ray.merging.METHODS, as METHODS['ties']"
        )
    if not isinstance(experts, Mapping):
        raise InputError(
            f"the experts are {type(experts).__name__}: give a mapping of labels to models, as "
            '{"a": a, "b": b}'
        )
    models = Models(
        {label: as_source(model, str(label)) for label, model in experts.items()},
        None if base is None else as_source(base, "the base"),
        statistics=[as_source(found, f"statistics {i}") for i, found in enumerate(statistics)],
        threads=threads,
    )
    merge = Merge.of(method, models, options, buffers)
    sink = StateSink(merge.specs(torch.float32))
    merge.run(sink)
    return sink.state


def merge_masks(
    method: Method,
    experts: Mapping[str, Model],
    base: Model,
    options: Mapping[str, Any] | None = None,
    buffers: Buffers = "average",
) -> MaskedModel:
    """The same for a masked method, ready to give each task's model."""
    return MaskedModel(StateSource(merge_with(method, experts, base, options, buffers)), tuple(experts))
