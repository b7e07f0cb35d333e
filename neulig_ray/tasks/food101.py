"""Food-101: 101 dishes; the training labels are noisy on purpose."""

from neulig_ray.tasks.reading.torchvision import TRAIN_TEST, torchvision_task

food101 = torchvision_task(
    "food101",
    "Food101",
    TRAIN_TEST,
    templates=("a photo of {}, a type of food.",),
    source="torchvision Food101",
    place="food-101/images/ and food-101/meta/ (train.json, test.json)",
    num_images={"train": 75750, "test": 25250},
    download_mb=4996,
)
