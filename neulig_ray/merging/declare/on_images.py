"""What methods that look at images while they merge have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels


@dataclass(frozen=True)
class OnImagesMethod(MergingMethod):
    """A function of `MergeInputs` and the method's options. `split`: whose images it looks at."""

    looks_at_images: ClassVar[bool] = True
    slow: ClassVar[bool] = True

    split: str = "val"

    def split_of(self, options: Mapping[str, Any]) -> str:
        """The split that the method looks at with these options: `adapt_on` names it where there is one."""
        return str(self.resolve(options).get("adapt_on", self.split))

    def run(self, inputs: MergeInputs, options: Mapping[str, Any]) -> MergedModels:
        found = self.call(self.function, inputs, options=self.resolve(options))
        return MergedModels.of(found, inputs, self.name)
