"""Oxford-IIIT Pet: 37 breeds of cats and dogs."""

from neulig_ray.tasks.reading.torchvision import torchvision_task

oxford_iiit_pet = torchvision_task(
    "oxford-iiit-pet",
    "OxfordIIITPet",
    {"train": {"split": "trainval"}, "test": {"split": "test"}},
    templates=("a photo of a {}, a type of pet.",),
    source="torchvision OxfordIIITPet",
    place="oxford-iiit-pet/images/ and oxford-iiit-pet/annotations/ (trainval.txt, test.txt)",
    num_images={"train": 3680, "test": 3669},
    download_mb=811,
    paper=True,
    held_out=1400,  # train and test are nearly of one size
)
