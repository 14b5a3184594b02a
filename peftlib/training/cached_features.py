"""What a frozen backbone makes of each image, made once: every later epoch trains the head alone."""

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from peftlib.data.datamodule import EarthData
from peftlib.training.base import Task

MOST = 4 * 2**30  # bytes of features to keep in memory


class CachedFeatures(EarthData):
    """The batches of other data, with ``features`` in place of ``image``.

    When a part is first asked for, the task's model reads it in the data set's order, not that of training: a run that
    resumes finds the same numbers.
    """

    def __init__(self, data: EarthData):
        super().__init__(data.train, data.val, data.test, data.batch_size, seed=data.seed, unseen=data.unseen)
        self._images = data
        self._made: dict[int, list[dict]] = {}

    def _loader(self, data: Dataset, sampler) -> DataLoader:
        if id(data) not in self._made:
            self._made[id(data)] = self._read(self._images._loader(data, range(len(data))))
        loader = super()._loader(self._made[id(data)], sampler)
        loader.collate_fn = default_collate
        return loader

    @torch.no_grad()
    def _read(self, images: DataLoader) -> list[dict]:
        trainer, samples = self.trainer, []
        assert trainer is not None  # only a trainer asks for batches
        task = trainer.lightning_module
        assert isinstance(task, Task)
        for batch in images:
            batch = trainer.strategy.batch_to_device(batch)  # which makes it ready too, as in training
            with trainer.precision_plugin.forward_context():
                batch["features"] = task.forward_features(batch.pop("image"))
            samples += split({name: value for name, value in batch.items() if name in ("features", "label", "mask")})
        return samples


def split(batch: dict) -> list[dict]:
    """A batch -> its samples, on the CPU; the inverse of ``default_collate``."""
    batch = {name: value if isinstance(value, list) else [value] for name, value in batch.items()}
    count = len(next(iter(batch.values()))[0])
    rows = [{name: [part[i].cpu() for part in parts] for name, parts in batch.items()} for i in range(count)]
    return [{name: parts if len(parts) > 1 else parts[0] for name, parts in row.items()} for row in rows]


def can_cache(task: Task, data: EarthData) -> bool:
    """Whether the backbone makes the same of an image each time, and all of it fits into memory."""
    model = task.model
    tuned = any(p.requires_grad for p in model.parameters())
    random = any(getattr(m, "p", 0) or getattr(m, "drop_prob", 0) for m in model.modules())  # dropout, drop path
    if tuned or random or task.augment:
        return False
    sample = default_collate([{"image": data.train[0]["image"]}])
    with torch.no_grad():
        features = task.forward_features(task.resized(sample)["image"])
    bytes_each = sum(one.nbytes for one in (features if isinstance(features, list) else [features]))
    parts = [part for part in (data.train, data.val, data.test, data.unseen) if part is not None]
    return bytes_each * sum(map(len, parts)) <= MOST
