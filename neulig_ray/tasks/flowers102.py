"""Oxford 102 flowers: only ten training and ten val images a class, and 6149 test images."""

from neulig_ray.tasks.reading.torchvision import TRAIN_VAL_TEST, torchvision_task

flowers102 = torchvision_task(
    "flowers102",
    "Flowers102",
    TRAIN_VAL_TEST,
    templates=("a photo of a {}, a type of flower.",),
    source="torchvision Flowers102",
    place="flowers-102/jpg/, flowers-102/imagelabels.mat and flowers-102/setid.mat",
    num_images={"train": 1020, "val": 1020, "test": 6149},
    download_mb=345,
)
