"""EuroSAT: 64x64 satellite photographs of ten kinds of land; the field's split, 21600 to train, 2700 to test.

torchvision has the 27000 images, but no splits; those of the published tables are in the hub's copy.
"""

from neulig_ray.tasks.reading.hub import hub_task

eurosat = hub_task(
    "eurosat",
    "tanganke/eurosat",
    revision="43750fc422c7fbd4289e2df3f7473617a5937acc",
    templates=tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")),
    source="hub tanganke/eurosat",
    native=(64, 64),
    num_images={"train": 21600, "test": 2700},
    download_mb=83,
)
