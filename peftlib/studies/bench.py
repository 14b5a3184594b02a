"""How fast, and in how much memory, each input and method trains one backbone here, against HF peft's LoRA.

rows = bench("dinov2_small", image_size=98, batch_size=32)
print(markdown(rows))
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from peftlib.backbones.loading import encoder_parameters, load_backbone
from peftlib.experiments.run import device_name
from peftlib.methods import INPUTS, METHODS, Frozen, Input, Method
from peftlib.methods.lora import LoRA
from peftlib.model.adapted_vit import adapt
from peftlib.sensors.bands import SENSORS
from peftlib.studies.plots import cell_label

PEER, PLAIN = "HF peft LoRA", "plain ViT"
PRECISIONS = ("float32", "bfloat16")
CELLS = (*METHODS, "inflated+frozen", "inflated+lora", "emb+frozen", "emb+lora")
CLASSES = 10  # of the head, a linear layer on the mean token
BANDS = tuple(name for name in SENSORS["sentinel2"] if name != "B10")


class Contestant:
    """A model (images -> tokens (B, N, d)) with a linear head and an optimiser, on one fixed batch."""

    def __init__(self, model: nn.Module, x: Tensor, dim: int, precision: str, compiled: bool):
        self.x = x
        self.truth = torch.arange(len(x), device=x.device) % CLASSES
        self.model, self.head = model.to(x.device).train(), nn.Linear(dim, CLASSES).to(x.device)
        self.run = torch.compile(self.model) if compiled else self.model
        self.tuned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*self.tuned, *self.head.parameters()], lr=1e-4, fused=True)
        self.autocast = torch.autocast(x.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def forward(self) -> None:
        with torch.no_grad(), self.autocast:
            self.run(self.x)

    def step(self) -> None:
        with self.autocast:
            tokens = self.run(self.x)
            loss = F.cross_entropy(self.head(tokens.mean(1)).float(), self.truth)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def peak_mb(self) -> float:
        """MiB of weights and optimiser, and of what a step allocates, at its highest."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        kept = [*self.model.parameters(), *self.model.buffers(), *self.head.parameters(), *states]
        size = sum(tensor.nbytes for tensor in kept if torch.is_tensor(tensor))
        return (size + highest_allocation(self.step, self.x.device)) / 2**20


def bench(
    backbone: str = "dinov2_small", image_size: int = 98, batch_size: int = 32, methods: Sequence[str] = CELLS,
    repeats: int = 10, device: str = "", precision: str = "float32", compiled: bool = False, checkpointed: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Time contestants beside each other: each repeat is a forward and a step of all, so all see the same weather.

    Weights and images are random: they change no time. Contestants are given the 12 surface bands of Sentinel-2; the
    peer, HF peft's LoRA of the rank and layers of ours, and the plain ViT are given ready-made RGB.

    Args:
        methods: names in ``peftlib.METHODS``, each on its default input, or ``"emb+lora"``: input and method.
        repeats: of which medians and quartiles are taken, after two for warming up.
        device: such as ``"cuda"``; empty is a GPU where there is one.
        precision: ``"float32"``, or ``"bfloat16"`` by autocast.
        compiled: by ``torch.compile``.
        checkpointed: keep only what enters each block, and make the rest again in the backward pass.

    Returns:
        a row a contestant; ``ratio`` is its step time over the peer's of the same round, ``peak_mb`` counts weights,
        optimiser and a step, ``step_gflops`` the whole batch, ``reached`` the share of a large matrix product's rate.

    Raises:
        ValueError: an unknown input, method or precision; names the choices.
    """
    cells = {name: _cell(name) for name in methods}
    if precision not in PRECISIONS or repeats < 1:
        raise ValueError(f"bench({precision=}, {repeats=}); precision is one of {PRECISIONS}, repeats at least 1")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts = {"backbone": backbone, "image_size": image_size, "batch_size": batch_size, "precision": precision}
    facts |= {"compiled": compiled, "checkpointed": checkpointed, "device": device_name(place)}
    facts |= {"torch": torch.__version__, "repeats": repeats}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = load_backbone(backbone, "random", image_size).train()
        vit.set_grad_checkpointing(checkpointed)
        x = (torch.rand(batch_size, len(BANDS), image_size, image_size) * 0.5).to(place)
        rgb = x[:, :3].contiguous()
        made = {(PEER, "", ""): (_peer(vit, LoRA()), rgb), (PLAIN, "", ""): (_plain(vit), rgb)}
        for input, method in cells.values():
            model = adapt(vit, method, BANDS, "sentinel2", image_size, input)
            made[cell_label(input.name, method.name), input.name, method.name] = model, x
        how = (vit.embed_dim, precision, compiled)
        racers = {names: Contestant(model, batch, *how) for names, (model, batch) in made.items()}
    seconds = []
    for repeat in tqdm(range(-2, repeats), desc="bench", unit="round"):
        for (name, *_), racer in racers.items():
            clocks = {"forward_ms": 1e3 * timed(racer.forward), "step_ms": 1e3 * timed(racer.step)}
            seconds.append({"name": name, "repeat": repeat} | clocks)
    times = pd.DataFrame(seconds).query("repeat >= 0").pivot(index="repeat", columns="name")
    rate = product_rate(place, precision)
    encoder = sum(p.numel() for p in encoder_parameters(vit).values())
    rows = [_row(names, racer, times, rate, encoder) for names, racer in racers.items()]
    return pd.DataFrame(rows).assign(rate_gflops=rate / 1e9, **facts)


def _cell(name: str) -> tuple[Input, Method]:
    """``"lora"`` or ``"emb+lora"`` -> input and method with their default options."""
    input, _, method = name.rpartition("+")
    if method not in METHODS or input not in (*INPUTS, ""):
        known = f"{', '.join(METHODS)}, INPUT of {', '.join(INPUTS)}"
        raise ValueError(f"methods={name!r}; choose METHOD or INPUT+METHOD, METHOD of {known}")
    config = METHODS[method]()
    return INPUTS[input]() if input else config.default_input(), config


def _row(names: tuple[str, str, str], racer: Contestant, times: pd.DataFrame, rate: float, encoder: int) -> dict:
    name, input, method = names
    step = times["step_ms"][name]
    ratio = step / times["step_ms"][PEER]
    with FlopCounterMode(display=False) as counter:
        racer.step()
    flops = counter.get_total_flops()
    row = {"name": name, "input": input, "method": method, "forward_ms": times["forward_ms"][name].median()}
    for values, middle, prefix in ((step, "step_ms", "step"), (ratio, "ratio", "ratio")):
        row[f"{prefix}_low"], row[middle], row[f"{prefix}_high"] = values.quantile([0.25, 0.5, 0.75])
    row |= {"images_per_s": 1e3 * len(racer.x) / step.median(), "peak_mb": racer.peak_mb()}
    row |= {"tuned": sum(p.numel() for p in racer.tuned), "adapter_mb": sum(p.nbytes for p in racer.tuned) / 2**20}
    return row | {"encoder": encoder, "step_gflops": flops / 1e9, "reached": flops / (step.median() / 1e3) / rate}


def _plain(vit: VisionTransformer) -> nn.Module:
    """The backbone alone, frozen, on ready-made RGB."""
    plain = adapt(vit, Frozen(), BANDS[1:4]).vit
    plain.forward = plain.forward_features
    return plain


def _peer(vit: VisionTransformer, lora: LoRA) -> nn.Module:
    """HF peft's LoRA of the same rank on the same layers."""
    from peft import LoraConfig, get_peft_model

    layers = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers)
    return get_peft_model(_plain(vit), config).base_model.model


def timed(act: Callable[[], object]) -> float:
    """Seconds that something takes, the work on a GPU included."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    clock = time.perf_counter()
    act()
    finish()
    return time.perf_counter() - clock


def product_rate(device: torch.device, precision: str, size: int = 2048) -> float:
    """Operations a second of a square matrix product, the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return 2 * size**3 / min([timed(lambda: a @ b) for _ in range(12)][2:])


def highest_allocation(act: Callable[[], None], device: torch.device) -> int:
    """The most bytes that something has allocated at a time, beyond what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def markdown(rows: pd.DataFrame) -> str:
    """The table as one would print it, fastest step first."""
    table, facts = pd.DataFrame({"input × method": rows["name"]}), rows.iloc[0]
    for middle, name, places in (("step_ms", "step", 0), ("ratio", "ratio", 2)):
        three = rows[[middle, f"{name}_low", f"{name}_high"]].round(places)
        table[middle] = [f"{m:g} ({low:g} to {high:g})" for m, low, high in three.to_numpy()]
    digits = {"forward_ms": 0, "images_per_s": 0, "peak_mb": 0, "adapter_mb": 2, "step_gflops": 0, "reached": 2}
    for name, places in digits.items():
        table[name] = rows[name].map(f"{{:.{places}f}}".format)
    table = table.assign(tuned=rows["tuned"].map("{:,}".format)).iloc[rows["step_ms"].argsort()]
    how = [name for name in ("compiled", "checkpointed") if facts[name]]
    place = [f"{facts.image_size} px", f"batch {facts.batch_size}", facts.precision, *how, facts.device]
    head = (
        f"{facts.backbone}, {', '.join(place)}, torch {facts.torch}: medians (and quartiles) of {facts.repeats} "
        f"interleaved rounds; peer: {PEER}; matrix products here: {facts.rate_gflops:.0f} GFLOP/s"
    )
    lines = [table.columns, ["---"] * len(table.columns), *table.values]
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines)])
