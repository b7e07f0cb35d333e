"""RESISC45: 256x256 aerial photographs of 45 kinds of places, 18900 to train and 6300 to test.

torchvision has none; the hub's copy has the split of the published tables.
"""

from neulig_ray.tasks.reading.hub import hub_task

resisc45 = hub_task(
    "resisc45",
    "tanganke/resisc45",
    revision="5c484982a196dcb501b8e79c6cf4680dc6f2ccdf",
    templates=tuple(
        f"{view} of {article}{{}}."
        for article in ("", "a ", "the ")
        for view in (
            "satellite imagery",
            "aerial imagery",
            "satellite photo",
            "aerial photo",
            "satellite view",
            "aerial view",
        )
    ),
    source="hub tanganke/resisc45",
    native=(256, 256),
    num_images={"train": 18900, "test": 6300},
    download_mb=360,
    paper=True,
)
