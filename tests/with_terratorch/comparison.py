"""Our LoRA beside TerraTorch's (Hugging Face peft) and DEFLECT, on the same task: score, step time, adapter file.

.venv-terratorch/bin/python tests/with_terratorch/comparison.py    # one CPU thread: some minutes
"""

import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import pandas as pd
import torch
from scenes import BANDS, CLASSES, SIZE, Scenes
from terratorch.tasks import SemanticSegmentationTask

import peftlib as pl
import peftlib.integrations.terratorch
from peftlib.training.fit import quiet_trainer

_INPUT = {"backbone_bands": list(BANDS), "backbone_image_size": SIZE}
_INFLATED = {"backbone_input": "inflated", "backbone_input_options": {"start": "mean", "train": False}}
_LORA = {"backbone_rank": 16, "backbone_alpha": 16.0, "backbone_targets": ["q", "v", "fc1", "fc2"]}
_PEFT = {"r": 16, "lora_alpha": 16, "target_modules": ["q_linear", "v_linear", "fc1", "fc2"]}
# peft freezes all but its updates, so both LoRAs read the new bands by a frozen inflated embedding.
KINDS = {
    "LoRA, ours": {"backbone": "peftlib_lora_dinov2_small"} | _INFLATED | _LORA,
    "LoRA, TerraTorch's": {
        "backbone": "peftlib_frozen_dinov2_small",
        "peft_config": {"method": "LORA", "replace_qkv": "qkv", "peft_config_kwargs": _PEFT},
    }
    | _INFLATED,
    "DEFLECT": {"backbone": "peftlib_deflect_dinov2_small"},
}


def build(kind: str, lr: float, seed: int, **options) -> SemanticSegmentationTask:
    """A task with a linear decoder: a 1 x 1 convolution on the last block's tokens, enlarged bilinearly."""
    lightning.seed_everything(seed, verbose=False)
    necks = [{"name": "SelectIndices", "indices": [11]}, {"name": "ReshapeTokensToImage"}]
    arguments = _INPUT | KINDS[kind] | options
    arguments |= {"necks": necks, "decoder": "IdentityDecoder", "num_classes": CLASSES}
    training = dict(ignore_index=-1, optimizer="AdamW", lr=lr, plot_on_val=False)
    with warnings.catch_warnings(action="ignore"):  # that peft without backbone_pretrained is unusual
        return SemanticSegmentationTask(arguments, "EncoderDecoderFactory", **training)


class StepTimes(lightning.Callback):
    """CPU milliseconds of each training step, with TerraTorch's metrics; other processes do not count."""

    def __init__(self):
        self.times = []

    def on_train_batch_start(self, *_):
        self.start = time.process_time()

    def on_train_batch_end(self, *_):
        self.times.append(1000 * (time.process_time() - self.start))


def run(task: SemanticSegmentationTask, data: Scenes, epochs: int) -> dict:
    """Train and test: tuned parameters, file of the adapter alone in MB, step in CPU ms, mIoU in %."""
    steps, encoder = StepTimes(), task.model.encoder
    trainer = quiet_trainer(max_epochs=epochs, accelerator="cpu", callbacks=[steps], limit_val_batches=0)
    trainer.fit(task, data)
    (scores,) = trainer.test(task, data, verbose=False)
    with tempfile.TemporaryDirectory() as folder:  # as each package writes it
        if hasattr(encoder, "save_pretrained"):
            encoder.save_pretrained(folder)
        else:
            pl.save_adapter(encoder.model, Path(folder) / "adapter.safetensors")
        size = next(Path(folder).glob("*.safetensors")).stat().st_size
    tuned = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    time_of_step = statistics.median(steps.times[1:] or steps.times)
    return {"tuned": tuned, "file_mb": size / 1e6, "step_ms": time_of_step, "miou": 100 * scores["test/mIoU"]}


def main() -> None:
    torch.set_num_threads(1)
    data, rows = Scenes({"train": 96, "test": 48}), []
    for seed in range(3):  # methods take turns: a busy minute hits all of them
        for kind, lr in zip(KINDS, (1e-3, 1e-3, 2e-3), strict=True):
            rows.append({"method": kind} | run(build(kind, lr, seed), data, epochs=6))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby("method", sort=False)
    print(table.mean().round(2).join(table["miou"].std().rename("sd").round(2)))


if __name__ == "__main__":
    main()
