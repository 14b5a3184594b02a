"""How fast, and in how much memory, each input and method trains one backbone here, against HF peft's LoRA.

rows = bench("dinov2_small", image_size=98, batch_size=32)     # in float32 and in reduced precision
print(markdown(rows))
"""

import time
from collections.abc import Callable, Sequence

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
from peftlib.methods import Frozen, Input, Method, input_from, method_from
from peftlib.methods.lora import LoRA
from peftlib.model.adapted_vit import adapt
from peftlib.model.precision import BF16_FROZEN, FLOAT32, PRECISIONS
from peftlib.sensors.bands import SENSORS
from peftlib.studies.plots import cell_label

PEER, PLAIN = "HF peft LoRA", "plain ViT"
AUTOCAST = "autocast"  # what reduces where no weight is frozen, or a model is not ours
CELLS = ("lora", "full", "norm_tuning", "inflated+frozen", "inflated+lora", "emb+frozen", "emb+lora", "deflect")
QUARTILES = (0.25, 0.5, 0.75)
CLASSES = 10  # of the head, a linear layer on the mean token
BANDS = tuple(name for name in SENSORS["sentinel2"] if name != "B10")
SHOWN = ["name", "precision", "step_ms", "step_low", "step_high", "ratio", "ratio_low", "ratio_high", "to_float32"]
SHOWN += ["forward_ms", "images_per_s", "peak_mb", "tuned", "adapter_mb", "step_gflops", "reached"]


class Contestant:
    """A model (images -> tokens (B, N, d)) with a linear head and an optimiser, on one fixed batch.

    ``names``: columns name, precision, input and method of its row; ``forward_ms`` and ``step_ms``: one a round.
    """

    def __init__(self, names: tuple[str, str, str, str], model: nn.Module, x: Tensor, dim: int, compiled: bool):
        self.names, self.x = names, x
        self.forward_ms: list[float] = []
        self.step_ms: list[float] = []
        self.truth = torch.arange(len(x), device=x.device) % CLASSES
        self.model, self.head = model.to(x.device).train(), nn.Linear(dim, CLASSES).to(x.device)
        self.run = torch.compile(self.model) if compiled else self.model
        self.tuned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*self.tuned, *self.head.parameters()], lr=1e-4, fused=True)
        self.autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=names[1] == AUTOCAST)

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
    repeats: int = 10, device: str = "", compiled: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Time contestants beside each other: each repeat is a forward and a step of all, so all see the same weather.

    Weights and images are random. Contestants are given the 12 surface bands of Sentinel-2; the
    peer, HF peft's LoRA of the rank and layers of ours, and the plain ViT are given ready-made RGB. Each races in
    float32 and in reduced precision: ``"bf16-frozen"`` for ours, bfloat16 by autocast for the others and where nothing
    is frozen.

    Args:
        methods: names in ``peftlib.METHODS``, each on its default input, or ``"emb+lora"``: input and method.
        repeats: of which medians and quartiles are taken, after two for warming up.
        device: such as ``"cuda"``; empty is a GPU where there is one.
        compiled: by ``torch.compile``.

    Returns:
        a row a contestant and ``precision``; ``ratio`` is its step time over that of the peer in the same round, in
        float32 or in autocast like itself, ``to_float32`` over that of the peer in float32; ``peak_mb`` counts
        weights, optimiser and a step, ``step_gflops`` the whole batch, ``reached`` the share of a large matrix
        product's rate. ValueError: an unknown input or method.
    """
    cells = [_cell(name) for name in methods]
    if repeats < 1:
        raise ValueError(f"bench({repeats=}); it must be at least 1")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts = {"backbone": backbone, "image_size": image_size, "batch_size": batch_size, "compiled": compiled}
    facts |= {"device": device_name(place), "torch": torch.__version__, "repeats": repeats}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = load_backbone(backbone, "random", image_size).train()
        x = (torch.rand(batch_size, len(BANDS), image_size, image_size) * 0.5).to(place)
        rgb = x[:, :3].contiguous()
        racers = []
        for precision in (FLOAT32, AUTOCAST):
            for name, plain in ((PEER, _peer(vit, LoRA())), (PLAIN, _plain(vit))):
                racers.append(Contestant((name, precision, "", ""), plain, rgb, vit.embed_dim, compiled))
        peers = {racer.names[1]: racer for racer in racers if racer.names[0] == PEER}
        for input, method in cells:
            for precision in (FLOAT32, AUTOCAST if method.name == "full" else BF16_FROZEN):
                stored = precision if precision in PRECISIONS else FLOAT32
                model = adapt(vit, method, BANDS, "sentinel2", image_size, input, precision=stored)
                names = cell_label(input.name, method.name), precision, input.name, method.name
                racers.append(Contestant(names, model, x, vit.embed_dim, compiled))
    for _ in tqdm(range(repeats + 2), desc="bench", unit="round"):
        for racer in racers:
            racer.forward_ms.append(1e3 * timed(racer.forward))
            racer.step_ms.append(1e3 * timed(racer.step))
    rates = {precision: product_rate(place, precision) for precision in (FLOAT32, AUTOCAST)}
    facts["encoder"] = sum(p.numel() for p in encoder_parameters(vit).values())
    return pd.DataFrame([_row(racer, peers, rates) for racer in racers]).assign(**facts)


def _cell(name: str) -> tuple[Input, Method]:
    """``"lora"`` or ``"emb+lora"`` -> input and method with their default options."""
    input, _, method = name.rpartition("+")
    config = method_from(method, {})
    return input_from(input, {}) if input else config.default_input(), config


def _row(racer: Contestant, peers: dict[str, Contestant], rates: dict[str, float]) -> dict:
    row: dict = dict(zip(("name", "precision", "input", "method"), racer.names, strict=True))
    alike = FLOAT32 if row["precision"] == FLOAT32 else AUTOCAST
    step, same, float32 = (np.array(one.step_ms[2:]) for one in (racer, peers[alike], peers[FLOAT32]))
    row |= {"forward_ms": np.median(racer.forward_ms[2:]), "to_float32": np.median(step / float32)}
    row |= dict(zip(("step_low", "step_ms", "step_high"), np.quantile(step, QUARTILES), strict=True))
    row |= dict(zip(("ratio_low", "ratio", "ratio_high"), np.quantile(step / same, QUARTILES), strict=True))
    row |= {"images_per_s": 1e3 * len(racer.x) / row["step_ms"], "peak_mb": racer.peak_mb()}
    row |= {"tuned": sum(p.numel() for p in racer.tuned), "adapter_mb": sum(p.nbytes for p in racer.tuned) / 2**20}
    with FlopCounterMode(display=False) as counter:
        racer.step()
    flops = counter.get_total_flops()
    reached = flops / (row["step_ms"] / 1e3) / rates[alike]
    return row | {"step_gflops": flops / 1e9, "reached": reached, "rate_gflops": rates[alike] / 1e9}


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
    """Operations a second of a square matrix product, in float32 or bfloat16, the best of ten."""
    dtype = torch.float32 if precision == FLOAT32 else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
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
    """The table as one would print it, fastest step first; ``low`` and ``high`` are quartiles."""
    shown, facts = rows.sort_values("step_ms")[SHOWN], rows.iloc[0]
    texts = shown.map(lambda value: f"{value:,.2f}" if isinstance(value, float) else str(value))
    machine = f"{facts.device}, torch {facts.torch}, {rows['rate_gflops'].max():.0f} GFLOP/s in matrix products"
    setting = f"{facts.image_size} px, batch {facts.batch_size}{', compiled' if facts.compiled else ''}"
    head = f"{facts.backbone}, {setting}: medians of {facts.repeats} interleaved rounds on {machine}"
    lines = [texts.columns, ["---"] * len(SHOWN), *texts.values]
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines)])
