"""Stanford Cars: 196 makes, models and years; from the hub, since the source of torchvision's is gone."""

from neulig_ray.tasks.reading.hub import hub_task

cars = hub_task(
    "cars",
    "tanganke/stanford_cars",
    revision="9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
    templates=(
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my clean {}.",
        "a photo of my new {}.",
        "a photo of my old {}.",
    ),
    source="hub tanganke/stanford_cars",
    num_images={"train": 8144, "test": 8041},
    download_mb=1980,
)
