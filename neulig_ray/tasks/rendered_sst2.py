"""Rendered SST2: is a sentence of a film review, drawn as 448x448 pixels, negative or positive?"""

from neulig_ray.tasks.reading.torchvision import TRAIN_VAL_TEST, torchvision_task

rendered_sst2 = torchvision_task(
    "rendered-sst2",
    "RenderedSST2",
    TRAIN_VAL_TEST,
    templates=("a {} review of a movie.",),
    source="torchvision RenderedSST2",
    place="rendered-sst2/{train,valid,test}/{negative,positive}/*.png",
    class_names=("negative", "positive"),
    native=(448, 448),
    num_images={"train": 6920, "val": 872, "test": 1821},
)
