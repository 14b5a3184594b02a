"""A labelled data set that near infrared decides, small enough to train on in a test."""

import torch
from helpers import SAVANNA, adapted, images
from torch.utils.data import Dataset

import peftlib as pl
from peftlib.data.datamodule import EarthData
from peftlib.training.base import Task
from peftlib.training.tasks import Classification, Segmentation


class Toy(Dataset):
    """Near infrared says the class of an image (0, 1, 2), and of each quarter of it (0, 1); a row of its mask is -1."""

    bands = SAVANNA

    def __init__(self, length: int, seed: int = 0, size: tuple[int, int] = (32, 32)):
        self.x = images(SAVANNA, batch=length, size=size, seed=seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict:
        x, label = self.x[i].clone(), i % 3
        _, H, W = x.shape
        mask = torch.zeros(H, W, dtype=torch.long)
        mask[: H // 2, : W // 2] = 1
        mask = mask.roll((i % 2 * (H // 2), i // 2 % 2 * (W // 2)), (0, 1))
        x[3] = 0.05 + 0.1 * label + 0.15 * mask + 0.02 * x[3]
        mask[0] = -1
        facts = {"bands": self.bands, "sensor": "sentinel2", "meta": {"gsd": 10.0, "source": f"toy {i}"}}
        return {"image": x, "label": label, "mask": mask} | facts


def toy_data(train: int = 8, val: int = 5, batch_size: int = 4, **options) -> EarthData:
    return EarthData(Toy(train), Toy(val, seed=1), Toy(4, seed=2), batch_size=batch_size, **options)


def classification(method=None, seed: int = 0, vit=None, **options) -> Classification:
    """A fresh task on a tiny ViT, the same at every call."""
    model = adapted(method or pl.LoRA(), SAVANNA, vit)
    torch.manual_seed(seed)
    return Classification(model, 3, **options)


def segmentation(method=None, seed: int = 0, **options) -> Segmentation:
    """A fresh task on a tiny ViT, the same at every call."""
    model = adapted(method or pl.LoRA(), SAVANNA)
    torch.manual_seed(seed)
    return Segmentation(model, ("low", "high"), **options)


def tuned(task: Task) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in task.tuned_state().items()}


def same(one: dict, other: dict) -> bool:
    """Whether two states are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
