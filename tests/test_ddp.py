"""Every method in data-parallel training: two processes on half a batch each do what one does on the whole."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from helpers import adapted, images, randomise
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import peftlib as pl
from peftlib.methods import Method

METHODS = {name: config() for name, config in pl.METHODS.items()}
METHODS["vpt"] = pl.VPT(dropout=0.0)  # each process would draw a mask of its own
pytestmark = pytest.mark.slow  # the fast gate has two processes in test_resume.py
every_method = pytest.mark.parametrize("name", METHODS)


class Task(nn.Module):
    """An adapted ViT with a linear head, as users write it. (B, C, H, W) -> (B, 3)."""

    def __init__(self, method: Method, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.head = adapted(method, seed=seed), nn.Linear(32, 3)
        randomise(self, seed=1 + seed).train()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def backward(model: nn.Module, step: int, part: slice) -> None:
    """The gradient on a part of a batch of four."""
    x, y = images(batch=4, seed=step)[part], torch.tensor([0, 1, 2, 0])[part]
    nn.functional.cross_entropy(model(x), y).backward()


def gradients(task: Task) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.requires_grad}


def worker(rank: int, folder: str) -> None:
    """One of two processes: all methods, one after the other. Each starts elsewhere, as after a careless seed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {}
    for name, method in METHODS.items():
        task = Task(method, seed=rank)
        model = DistributedDataParallel(task)
        optimiser = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-2)
        for step in range(2):
            optimiser.zero_grad()
            backward(model, step, slice(2 * rank, 2 * rank + 2))
            if step == 0:
                first = gradients(task)
            optimiser.step()
        results[name] = first, task.state_dict()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes found: method -> first gradients, state after two steps."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@every_method
def test_two_halves_of_a_batch_give_the_gradient_of_the_whole(name, ranks):
    task = Task(METHODS[name], seed=0)  # DDP spreads the start of the first process
    backward(task, 0, slice(None))
    expected = gradients(task)
    for found, _ in (rank[name] for rank in ranks):
        assert found.keys() == expected.keys()
        for key in found:
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)
    assert all(gradient.abs().max() > 1e-4 for gradient in expected.values())


@every_method
def test_processes_agree_bit_by_bit_after_two_steps(name, ranks):
    (_, one), (_, other) = (rank[name] for rank in ranks)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@every_method
def test_only_what_is_tuned_has_moved(name, ranks):
    task = Task(METHODS[name], seed=0)
    before = task.state_dict()
    tuned = {key for key, p in task.named_parameters() if p.requires_grad}
    after = ranks[0][name][1]
    assert {key for key in before if not torch.equal(before[key], after[key])} == tuned
