"""Describable textures (DTD), 47 classes; partition 1 of the ten, with its official val split.

Checkpoints of the field differ here: in one family of experts the test accuracy on DTD is 98 % and the val
accuracy 79 %, most likely because val images lay in the training folder. Images that occur in two splits are
therefore looked for when the task is prepared, and more than 1 % of them is refused.
"""

from neulig_ray.tasks.reading.torchvision import TRAIN_VAL_TEST, torchvision_task

_THINGS = ("texture", "pattern", "thing", "object")

dtd = torchvision_task(
    "dtd",
    "DTD",
    TRAIN_VAL_TEST,
    templates=tuple(f"a photo of {article} {{}} {thing}." for article in ("a", "the") for thing in _THINGS),
    source="torchvision DTD, partition 1",
    place="dtd/dtd/images/ and dtd/dtd/labels/ (train1.txt, val1.txt, test1.txt)",
    num_images={"train": 1880, "val": 1880, "test": 1880},
    download_mb=625,
)
