"""What a merging method and its evaluation work on, read from the storage as it is needed."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neulig_ray.cluster.device import device
from neulig_ray.errors import NotApplicable
from neulig_ray.evaluation.context import Bench, choose
from neulig_ray.evaluation.images import TaskImages
from neulig_ray.evaluation.merged_models import Ingredients
from neulig_ray.evaluation.method_rows import Tuning
from neulig_ray.evaluation.metrics import accuracy
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import origin_of
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.merging.adaptation_inputs import Workbench
from neulig_ray.merging.parameters import ExpertStack
from neulig_ray.models.archs import ARCHS
from neulig_ray.stages.origins import load_clip
from neulig_ray.stages.read_inputs import SharedSplit, load_bare_tower, read_split, read_stack
from neulig_ray.stages.statistics import open_statistics
from neulig_ray.stages.tasks import load_split
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.sources import State


@dataclass(frozen=True)
class MergeBench:
    """One combination of one arch. `val_images`: most val images of a task that choices are made on."""

    storage: Storage
    models: ArchModels
    combination: Combination
    batchnorm_images: int
    val_images: int
    seed: int

    @functools.cached_property
    def stack(self) -> ExpertStack:
        return read_stack(self.storage, self.models, self.combination)

    @functools.cached_property
    def test(self) -> SharedSplit:
        return self._split("test")

    @functools.cached_property
    def val(self) -> SharedSplit:
        return self._split("val")

    def _split(self, split: str) -> SharedSplit:
        return read_split(self.storage, self.models, split, self.models.experts, images=True)

    def ingredients(self, spec: MethodSpec, statistics: Sequence[Artifact]) -> Ingredients:
        """Raises NotApplicable for an arch that the method refuses, and where a base is missing.

        Experts of different origins have no common one.
        """
        if reason := spec.method.refuses(load_bare_tower(self.models.arch)):
            raise NotApplicable(reason)
        origins = sorted({origin_of(key) for key in self.combination})
        if spec.method.needs_base and len(origins) > 1:
            raise NotApplicable(f"it needs one base, but the experts start from {' and '.join(origins)}")
        origin = origins[0] if len(origins) == 1 else None
        return Ingredients(
            base=self._base(origin) if origin else None,
            origin=origin,
            statistics=[open_statistics(self.storage, artifact) for artifact in statistics],
            workbench=lambda: self._workbench(spec, origin),
            unlabelled=self._unlabelled() if self.stack.has_batchnorm else {},
        )

    def tuning(self, spec: MethodSpec) -> Tuning | None:
        if not spec.grid:
            return None
        return Tuning(spec.grid, self.val.data, self.val.images, self.val_images)

    def _base(self, origin: str) -> State:
        clip = load_clip(self.storage, self.models.origins[origin], self.models.arch)
        state: State = clip.visual.state_dict()
        return state

    def _unlabelled(self) -> dict[str, np.ndarray]:
        found = {}
        for task, data in self.models.data.items():
            images = load_split(self.storage, data, "train").images
            found[task] = images[choose(len(images), self.batchnorm_images, self.seed, task).numpy()]
        return found

    def _workbench(self, spec: MethodSpec, origin: str | None) -> Workbench:
        arch, tower = ARCHS[self.models.arch], load_bare_tower(self.models.arch)
        split = spec.method.resolve(dict(spec.options)).get("adapt_on", spec.method.split)
        images = {
            key: TaskImages(
                load_split(self.storage, self.models.data[task_of(key)], split).images, arch, device()
            )
            for key in self.combination
        }
        data = self.val.data
        judge = Bench(self.combination, self.stack, tower, arch, data, self.val.images)

        def score(state: State) -> Mapping[str, float]:
            found = {}
            for key in self.combination:
                task = task_of(key)
                rows = choose(len(self.val.images[task]), self.val_images, self.seed, task)
                found[key] = accuracy(judge.logits(state, task, rows), judge.labels(task, rows))
            return found

        return Workbench(
            tower=tower,
            experts={key: self.stack.state(key) for key in self.combination},
            base=self._base(origin) if origin else None,
            images=images,
            heads={key: torch.clone(data.head(key)) for key in self.combination},
            score=score,
            seed=self.seed,
        )
