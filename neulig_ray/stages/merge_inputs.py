"""What a merging method and its evaluation work on, read from the storage as it is needed."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from neulig_ray.cluster.device import device
from neulig_ray.errors import NotApplicable
from neulig_ray.evaluation.context import EvaluationContext, choose
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.evaluation.method_models import MethodModels, Tuning, make_models
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import origin_of
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.on_images import OnImagesMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import ARCHS
from neulig_ray.stages.origins import load_clip
from neulig_ray.stages.read_inputs import load_bare_tower, read_split, read_stack
from neulig_ray.stages.statistics import open_statistics
from neulig_ray.stages.tasks import load_split
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.sources import State

V = TypeVar("V")


class ReadOnDemand(Mapping[str, V]):
    """Values that are read when they are first looked up."""

    def __init__(self, keys: Sequence[str], read: Callable[[str], V]) -> None:
        self._keys, self._read = tuple(keys), read
        self._values: dict[str, V] = {}

    def __getitem__(self, key: str) -> V:
        if key not in self._keys:
            raise KeyError(key)
        if key not in self._values:
            self._values[key] = self._read(key)
        return self._values[key]

    def __contains__(self, key: object) -> bool:  # Mapping's own would read the value
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class MergeReader:
    """Reads what concerns one combination.

    `val_images`: most val images of a task that choices use. `drawn_by`: the seed of the images that are
    chosen; None: the method's.
    """

    storage: Storage
    models: ArchModels
    combination: Combination
    batchnorm_images: int
    val_images: int
    seed: int
    drawn_by: int | None = None

    @property
    def image_seed(self) -> int:
        return self.seed if self.drawn_by is None else self.drawn_by

    @functools.cached_property
    def stack(self) -> ExpertStack:
        return read_stack(self.storage, self.models, self.combination)

    @property
    def origin(self) -> str | None:
        """The origin that all experts share: experts of different origins have no common base."""
        origins = self._origins
        return origins[0] if len(origins) == 1 else None

    @property
    def _origins(self) -> list[str]:
        return sorted({origin_of(key) for key in self.combination})

    def check(self, method: MergingMethod) -> None:
        """Raises NotApplicable for an arch that the method does not support, and where a base is missing."""
        if reason := method.unsupported_reason(load_bare_tower(self.models.arch)):
            raise NotApplicable(reason)
        if method.needs_base and self.origin is None:
            raise NotApplicable(
                f"it needs one base, but the experts start from {' and '.join(self._origins)}"
            )

    def inputs(self, spec: MethodSpec, statistics: Sequence[Artifact] = ()) -> MergeInputs:
        """What the method merges. Images, heads and scores are read when it asks for them."""
        arch, method = ARCHS[self.models.arch], spec.method
        split = method.split_of(dict(spec.options)) if isinstance(method, OnImagesMethod) else "val"

        def images(key: str) -> TaskImages:
            stored = load_split(self.storage, self.models.data[task_of(key)], split).images
            return TaskImages(stored, arch, device())

        return MergeInputs(
            tower=load_bare_tower(self.models.arch),
            experts={key: self.stack.state(key) for key in self.combination},
            base=self._base(self.origin) if self.origin else None,
            statistics=[open_statistics(self.storage, artifact) for artifact in statistics],
            images=ReadOnDemand(self.combination, images),
            heads=ReadOnDemand(self.combination, lambda key: torch.clone(self.val.data.head(key))),
            score=self._score,
            seed=self.seed,
            tasks=tuple(map(task_of, self.combination)),
        )

    def make(self, spec: MethodSpec, statistics: Sequence[Artifact], batch_size: int) -> MethodModels:
        """All models that the method makes; options that the experiment leaves open are chosen on val."""
        return make_models(
            spec.require(MergingMethod),
            self.inputs(spec, statistics),
            ARCHS[self.models.arch],
            options=spec.options_with(self.seed),
            unlabelled=self.unlabelled(),
            tuning=self.tuning(spec),
            batch_size=batch_size,
            seed=self.image_seed,
        )

    def context(self, split: str) -> EvaluationContext:
        """The images of a split, and what they are judged by."""
        read = read_split(self.storage, self.models, split, self.models.experts, images=True)
        arch = self.models.arch
        return EvaluationContext(
            self.combination, self.stack, load_bare_tower(arch), ARCHS[arch], read.data, read.images
        )

    @functools.cached_property
    def val(self) -> EvaluationContext:
        return self.context("val")

    def tuning(self, spec: MethodSpec) -> Tuning | None:
        """What is chosen on val of the options that the experiment leaves open."""
        return Tuning(spec.grid, self.val, self.val_images) if spec.grid else None

    def unlabelled(self) -> dict[str, np.ndarray]:
        """Train images, task -> (N, H, W, 3), for new BatchNorm statistics; none where there are no such."""
        found: dict[str, np.ndarray] = {}
        for task, data in self.models.data.items() if self.stack.has_batchnorm else ():
            images = load_split(self.storage, data, "train").images
            found[task] = images[choose(len(images), self.batchnorm_images, self.image_seed, task).numpy()]
        return found

    def _base(self, origin: str) -> State:
        clip = load_clip(self.storage, self.models.origins[origin], self.models.arch)
        state: State = clip.visual.state_dict()
        return state

    def _score(self, state: State) -> Mapping[str, float]:
        found = {}
        for key in self.combination:
            task = task_of(key)
            rows = choose(len(self.val.images[task]), self.val_images, self.image_seed, task)
            found[key] = accuracy(self.val.logits(state, task, rows), self.val.labels(task, rows))
        return found
