"""Training, validation and test images as one Lightning data module."""

from collections.abc import Iterator
from copy import copy

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from peftlib.data.dataset import collate
from peftlib.data.subsets import data_fingerprint


class EarthData(lightning.LightningDataModule):
    """Batches for training, validation and test.

        data = EarthData(EuroSAT("train"), EuroSAT("val"), EuroSAT("test"), batch_size=64)
        model.fit_normalization(data.train_dataloader())

    Training images come in an order that depends on seed and epoch alone. In data-parallel training each process gets
    its share; of validation and test images each just once, so that metrics are those of one process.

    Args:
        train, val, test, unseen: data sets of sample dicts (see ``EarthDataset``). unseen is one more to test on, of
            regions that the others lack.
        batch_size: images a batch, in each process.
        workers: processes that read ahead; 0 reads in the main one.
        seed: of the order of training images.

    Raises:
        ValueError: an empty data set, sets with different bands, or impossible numbers.
    """

    def __init__(
        self,
        train: Dataset,
        val: Dataset,
        test: Dataset | None = None,
        batch_size: int = 32,
        workers: int = 0,
        seed: int = 0,
        unseen: Dataset | None = None,
    ):
        super().__init__()
        self.train, self.val, self.test, self.unseen = train, val, test, unseen
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        for name, least in (("batch_size", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"EarthData({name}={getattr(self, name)!r}); it must be at least {least}")
        if empty := [name for name, data in self._parts().items() if len(data) == 0]:
            raise ValueError(f"no images in {empty}")
        bands = {name: tuple(data.bands) for name, data in self._parts().items() if hasattr(data, "bands")}
        if len(set(bands.values())) > 1:
            raise ValueError(f"data sets with different bands: {bands}")

    def _parts(self) -> dict[str, Dataset]:
        parts = {"train": self.train, "val": self.val, "test": self.test, "unseen": self.unseen}
        return {name: data for name, data in parts.items() if data is not None}

    def facts(self) -> dict:
        """What a run on these data depends on, in plain values."""
        held = {name: data_fingerprint(data) for name, data in self._parts().items()}
        return {"batch_size": self.batch_size, "data_seed": self.seed, "images": len(self.train), "data": held}

    def train_dataloader(self) -> DataLoader:
        rank, world = self._rank()
        return self._loader(self.train, DistributedSampler(self.train, world, rank, shuffle=True, seed=self.seed))

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def unseen_split(self) -> "EarthData":
        """The same data with the unseen part to test on."""
        if self.unseen is None:
            raise ValueError("these data have no unseen part")
        there = copy(self)
        there.test, there.unseen = self.unseen, None
        return there

    def _rank(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _in_order(self, part: str) -> DataLoader:
        if (data := self._parts().get(part)) is None:
            raise ValueError(f"these data have no {part} part")
        rank, world = self._rank()
        return self._loader(data, range(rank, len(data), world))

    def _loader(self, data: Dataset, sampler) -> DataLoader:
        return EpochLoader(
            data,
            self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(self.seed),  # of its own: draws of the training stay the same
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
        )


class EpochLoader(DataLoader):
    """A DataLoader that starts an epoch, its order and its workers, when the first batch is asked for.

    Lightning makes the iterator of a resumed run before it has said which epoch that is.
    """

    def __iter__(self) -> Iterator[dict]:  # type: ignore[override]  # torch names a class of its own
        yield from super().__iter__()
