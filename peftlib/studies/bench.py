"""How fast, and in how much memory, each method trains one backbone here, against HF peft's LoRA.

rows = bench("dinov2_small", image_size=98, batch_size=32)
print(markdown(rows))
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from peftlib.backbones.loading import encoder_parameters, load_backbone
from peftlib.experiments.results import RESULTS
from peftlib.experiments.run import device_name
from peftlib.files import root
from peftlib.methods import METHODS, Frozen, LoRA
from peftlib.model.adapted_vit import adapt
from peftlib.sensors.bands import SENSORS

PEER, PLAIN = "HF peft LoRA", "plain ViT"
PRECISIONS = ("float32", "bfloat16")
CLASSES = 10  # of the head, a linear layer on the mean token
BANDS = tuple(name for name in SENSORS["sentinel2"] if name != "B10")


class Contestant:
    """One model with a linear head and an optimiser, ready for a forward or a training step on a fixed batch.

    Args:
        model: tokens (B, N, d) of images.
        x: what it reads.
        dim: width d.
        precision: ``"float32"``, or ``"bfloat16"`` by autocast.
        compiled: by ``torch.compile``.
    """

    def __init__(self, model: nn.Module, x: Tensor, dim: int, precision: str, compiled: bool):
        self.x, self.device = x, x.device
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

    def milliseconds(self, act: Callable[[], None]) -> float:
        _wait(self.device)
        clock = time.perf_counter()
        act()
        _wait(self.device)
        return 1e3 * (time.perf_counter() - clock)

    def peak_mb(self) -> float:
        """MiB of weights and optimiser, and of what a step allocates, at its highest."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        kept = [*self.model.parameters(), *self.model.buffers(), *self.head.parameters(), *states]
        size = sum(tensor.nbytes for tensor in kept if torch.is_tensor(tensor))
        return (size + highest_allocation(self.step, self.device)) / 2**20


def bench(
    backbone: str = "dinov2_small",
    image_size: int = 98,
    batch_size: int = 32,
    methods: Sequence[str] = tuple(METHODS),
    repeats: int = 10,
    device: str = "",
    precision: str = "float32",
    compiled: bool = False,
    checkpointed: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Time methods beside each other: each repeat is a forward and a step of every one, so all see the same weather.

    Weights and images are random: they change no time. All methods read the 12 surface bands of Sentinel-2, the peer
    and the plain ViT ready-made RGB.

    Args:
        backbone: name in ``peftlib.BACKBONES``.
        image_size: side in pixels.
        methods: names in ``peftlib.METHODS``, with their defaults.
        repeats: of which medians are taken, after two for warming up.
        device: such as ``"cpu"`` or ``"cuda"``; empty is a GPU where there is one.
        precision: ``"float32"``, or ``"bfloat16"`` by autocast.
        compiled: by ``torch.compile``.
        checkpointed: keep only what enters each block, and make the rest again in the backward pass.

    Returns:
        a row a contestant, the peer (``HF peft LoRA``, of the rank and layers of our LoRA) and the ``plain ViT`` among
        them: ``forward_ms`` and ``step_ms``, medians; ``step_low`` and ``step_high``, the quartiles; ``ratio`` of the
        step to the peer's, the median over repeats, with ``ratio_low`` and ``ratio_high``; ``images_per_s`` of
        training; ``peak_mb`` of weights, optimiser and a step; ``tuned`` parameters, and those of the ``encoder``;
        ``adapter_mb`` that the tuned ones take on disk; ``step_gflops`` of the batch; ``reached``, their share of the
        rate of a large matrix product here.

    Raises:
        ValueError: an unknown method or precision; names the choices.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"methods={unknown}; choose from {', '.join(METHODS)}")
    if precision not in PRECISIONS or repeats < 1:
        raise ValueError(f"bench({precision=}, {repeats=}); precision is one of {PRECISIONS}, repeats at least 1")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = load_backbone(backbone, "random", image_size).train()
        vit.set_grad_checkpointing(checkpointed)
        images = torch.rand(batch_size, len(BANDS), image_size, image_size) * 0.5
        x = images.to(place)
        rgb = x[:, :3].contiguous()
        made = {name: (adapt(vit, METHODS[name](), BANDS, "sentinel2", image_size), x) for name in methods}
        made[PEER] = _peer(vit, LoRA()), rgb
        made[PLAIN] = _plain(vit), rgb
        racers = {
            name: Contestant(model, batch, vit.embed_dim, precision, compiled) for name, (model, batch) in made.items()
        }
    seconds = []
    for repeat in tqdm(range(-2, repeats), disable=not progress, desc="bench", unit="round"):
        for name, racer in racers.items():
            line = {"name": name, "repeat": repeat, "forward_ms": racer.milliseconds(racer.forward)}
            seconds.append(line | {"step_ms": racer.milliseconds(racer.step)})
    times = pd.DataFrame(seconds).query("repeat >= 0").pivot(index="repeat", columns="name")
    rate = product_rate(place, precision)
    encoder = sum(p.numel() for p in encoder_parameters(vit).values())
    rows = [_row(name, racer, times, rate, encoder) for name, racer in racers.items()]
    facts = {
        "backbone": backbone,
        "image_size": image_size,
        "batch_size": batch_size,
        "precision": precision,
        "compiled": compiled,
        "checkpointed": checkpointed,
        "device": device_name(place),
        "torch": torch.__version__,
        "repeats": repeats,
    }
    return pd.DataFrame(rows).assign(rate_gflops=rate / 1e9, **facts)


def _row(name: str, racer: Contestant, times: pd.DataFrame, rate: float, encoder: int) -> dict:
    step, forward = times["step_ms"][name], times["forward_ms"][name]
    ratio = step / times["step_ms"][PEER]
    with FlopCounterMode(display=False) as counter:
        racer.step()
    return {
        "name": name,
        "forward_ms": forward.median(),
        "step_ms": step.median(),
        "step_low": step.quantile(0.25),
        "step_high": step.quantile(0.75),
        "ratio": ratio.median(),
        "ratio_low": ratio.quantile(0.25),
        "ratio_high": ratio.quantile(0.75),
        "images_per_s": 1e3 * len(racer.x) / step.median(),
        "peak_mb": racer.peak_mb(),
        "tuned": sum(p.numel() for p in racer.tuned),
        "adapter_mb": sum(p.nbytes for p in racer.tuned) / 2**20,
        "encoder": encoder,
        "step_gflops": counter.get_total_flops() / 1e9,
        "reached": counter.get_total_flops() / (step.median() / 1e3) / rate,
    }


def _plain(vit: VisionTransformer) -> nn.Module:
    """The backbone alone, frozen, on ready-made RGB."""
    return _Features(adapt(vit, Frozen(), BANDS[1:4]).vit)


def _peer(vit: VisionTransformer, lora: LoRA) -> nn.Module:
    """HF peft's LoRA of the same rank on the same layers."""
    from peft import LoraConfig, get_peft_model

    layers = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers)
    return _Features(get_peft_model(_plain(vit).vit, config).base_model.model)


class _Features(nn.Module):
    def __init__(self, vit: VisionTransformer):
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        return self.vit.forward_features(x)


# --- measures ---


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device, precision: str, size: int = 2048) -> float:
    """Operations a second of a square matrix product, the best of ten."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(12):
        _wait(device)
        clock = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - clock)
    return 2 * size**3 / min(seconds[2:])


def highest_allocation(act: Callable[[], None], device: torch.device) -> int:
    """The most bytes that something has allocated at a time, beyond what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        act()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = [event for event in events if event.get("name") == "[memory]"]
    change = pd.Series([event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])], dtype=float)
    return int(change.cumsum().max())


# --- tables ---


def read_bench() -> pd.DataFrame:
    """The committed rows, ``data/results/bench.csv``, with the machine that they were taken on."""
    return pd.read_csv(root() / RESULTS / "bench.csv")


def markdown(rows: pd.DataFrame) -> str:
    """The table as one would print it, fastest step first."""
    facts = rows.iloc[0]
    table = pd.DataFrame(
        {
            "method": rows["name"],
            "forward ms": rows["forward_ms"].map("{:.0f}".format),
            "step ms": [
                f"{m:.0f} ({a:.0f} to {b:.0f})" for m, a, b in rows[["step_ms", "step_low", "step_high"]].values
            ],
            "/ peer": [
                f"{m:.2f} ({a:.2f} to {b:.2f})" for m, a, b in rows[["ratio", "ratio_low", "ratio_high"]].values
            ],
            "images/s": rows["images_per_s"].map("{:.0f}".format),
            "peak MiB": rows["peak_mb"].map("{:.0f}".format),
            "tuned": rows["tuned"].map("{:,}".format),
            "adapter MiB": rows["adapter_mb"].map("{:.2f}".format),
            "GFLOP": rows["step_gflops"].map("{:.0f}".format),
            "of matmul rate": rows["reached"].map("{:.0%}".format),
        }
    )
    table = table.iloc[rows["step_ms"].argsort()]
    how = [name for name in ("compiled", "checkpointed") if facts[name]]
    place = [f"{facts.image_size} px", f"batch {facts.batch_size}", facts.precision, *how, facts.device]
    head = (
        f"{facts.backbone}, {', '.join(place)}, torch {facts.torch}: medians (and quartiles) of {facts.repeats} "
        f"interleaved rounds; peer: {PEER}; matrix products here: {facts.rate_gflops:.0f} GFLOP/s"
    )
    lines = [table.columns, ["---"] * len(table.columns), *table.values]
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines)])
