"""SUN397: 397 kinds of scenes, 50 images of each to train and 50 to test (partition 1).

torchvision has all 108754 images, but none of the partitions that published accuracies are of.
"""

from neulig_ray.tasks.reading.hub import hub_task

sun397 = hub_task(
    "sun397",
    "tanganke/sun397",
    revision="9c4afd6174afa3974f209a0ef099dbbe244dfd27",
    templates=("a photo of a {}.", "a photo of the {}."),
    source="hub tanganke/sun397",
    num_images={"train": 19850, "test": 19850},
    download_mb=14500,
)
