"""Facial expressions (FER2013), seven classes, 48x48, grey. Its host wants a log-in: placed by hand.

Test is the public and the private test part together, 7178 images.
"""

from neulig_ray.tasks.reading.torchvision import TRAIN_TEST, torchvision_task

fer2013 = torchvision_task(
    "fer2013",
    "FER2013",
    TRAIN_TEST,
    templates=(
        "a photo of a {} looking face.",
        "a photo of a face showing the emotion: {}.",
        "a photo of a face looking {}.",
        "a face that looks {}.",
        "they look {}.",
        "look at how {} they are.",
    ),
    source="torchvision FER2013 (placed by hand)",
    place="fer2013/fer2013.csv or fer2013/icml_face_data.csv (train.csv and test.csv have no test labels)",
    native=(48, 48),
    num_images={"train": 28709, "test": 7178},
    most_shared=1.0,  # the official files hold many photographs twice
    downloads=False,
)
