"""The tasks: what they predict, what counts, what is logged, what is done to a batch."""

import math
import warnings

import numpy as np
import pytest
import torch
from helpers import SAVANNA, adapted, images, tiny_vit
from sklearn import metrics as reference
from torch.utils.data import DataLoader
from toy_data import Toy, classification, segmentation, toy_data

import peftlib as pl
from peftlib.training.base import balanced_weights, rate_share
from peftlib.training.fit import quiet_trainer
from peftlib.training.metrics import ClassScores
from peftlib.training.tasks import Classification, Segmentation, predict_batches


def batch(n: int = 4, **options) -> dict:
    return next(iter(DataLoader(Toy(n, **options), n, collate_fn=toy_data().val_dataloader().collate_fn)))


# --- predictions and losses ---


@pytest.mark.parametrize("options", [dict(), dict(class_token=False, global_pool="avg", reg_tokens=0)])
def test_the_head_reads_class_token_and_mean_of_patches(options):
    model = adapted(pl.LoRA(), SAVANNA, vit=tiny_vit(**options))
    task, x = Classification(model, 3), images(SAVANNA)
    tokens = model(x)
    parts = [tokens[:, 0]] if not options else []
    expected = task.head(torch.cat([*parts, tokens[:, -16:].mean(1)], dim=1))
    torch.testing.assert_close(task(x), expected)
    assert task(x).shape == (2, 3)


class Rare(Toy):
    """Label 0 once, then 2; of the rows of a mask the first is unknown, four are 1, 27 are 0."""

    def __getitem__(self, i: int) -> dict:
        rows = torch.tensor([-1] + 4 * [1] + 27 * [0])
        return super().__getitem__(i) | {"label": 2 * (i > 0), "mask": rows[:, None].expand(32, 32)}


def test_balanced_weights_give_each_class_that_occurs_the_same_part():
    data = Rare(10)
    torch.testing.assert_close(balanced_weights(data, "label", 3), torch.tensor([10 / 2, 1.0, 10 / 18]))
    torch.testing.assert_close(balanced_weights(data, "mask", 2), torch.tensor([31 / 54, 31 / 8]))


@pytest.mark.parametrize("make", [classification, segmentation])
def test_a_weighted_loss_is_the_mean_of_weighted_losses(make):
    b, weights = batch(), [0.5, 2.0, 3.0][: 3 if make is classification else 2]
    task, plain = make(class_weights=weights), make()
    target = task.target(b)
    known = target >= 0
    each = torch.nn.functional.cross_entropy(task.logits(b), target.clamp_min(0), reduction="none")
    expected = (each * torch.tensor(weights)[target.clamp_min(0)])[known].mean()
    torch.testing.assert_close(task.loss(task.logits(b), target), expected)
    assert plain.facts()["class_weights"] is None and task.facts()["class_weights"] == weights
    torch.testing.assert_close(plain.loss(plain.logits(b), target), each[known].mean())


def test_dice_is_the_mean_over_classes_of_one_minus_the_overlap():
    b = batch()
    task, target = segmentation(dice=0.25), b["mask"]
    p, known = task.logits(b).softmax(1), target >= 0
    overlap = [2 * (p[:, c] * (target == c))[known].sum() / (p[:, c] + (target == c))[known].sum() for c in (0, 1)]
    expected = 0.75 * segmentation().loss(task.logits(b), target) + 0.25 * (1 - sum(overlap) / 2)
    torch.testing.assert_close(task.loss(task.logits(b), target), expected)
    nothing = task.loss(task.logits(b), torch.full_like(target, -1))
    nothing.backward()
    assert nothing == 0 and not any(p.grad.any() for p in task.decoder.parameters())
    assert segmentation().facts()["dice"] is None and task.facts()["dice"] == 0.25


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(decoder="fcn"), "'fcn'; choose from linear"),
        (dict(dice=1.5), "dice=1.5; it is a share"),
        (dict(class_weights="rare"), r"class_weights='rare'; give 'balanced', None, or a number for each of \('low'"),
        (dict(class_weights=[1.0]), r"class_weights=\[1.0\]; give 'balanced'"),
        (dict(class_weights=[1.0, math.nan]), "class_weights=.*nan"),
        (dict(ignore_index=1), "ignore_index=1 is a class"),
        (dict(schedule="step"), "'step'; choose from"),
        (dict(warmup=1.0), "warmup=1.0; it is a share"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        segmentation(**options)


@pytest.mark.parametrize("classes", [1, 0, ("a",), ("a", "a")])
def test_classes_need_different_names(classes):
    with pytest.raises(ValueError, match="two or more different names"):
        Classification(adapted(pl.Frozen(), SAVANNA), classes)


# --- optimiser and schedule ---


@pytest.mark.parametrize("method", [pl.Frozen(), pl.LoRA(), pl.Full()])
@pytest.mark.parametrize("input", [pl.RGB(), pl.EMB()])
@pytest.mark.parametrize("make", [classification, lambda m: segmentation(m, decoder="unet")])
def test_input_method_and_head_learn_at_their_own_rates(make, input, method):
    task = make(method)
    task.model = adapted(method, SAVANNA, input=input)
    task.input_lr, task.lr, task.head_lr = 0.125, 0.25, 0.5
    groups = task.configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    parts = task.model.tuned_parts()
    expected = {id(p): 0.125 for p in parts["input"].values()} | {id(p): 0.25 for p in parts["method"].values()}
    expected |= {id(p): 0.5 for name, p in task.named_parameters() if not name.startswith("model.")}
    assert rates == expected and {id(p) for p in task.parameters() if p.requires_grad} == set(rates)


def test_rates_rise_linearly_and_fall_with_half_a_cosine():
    found = [rate_share(step, 10, 0.2, "cosine") for step in range(11)]
    expected = [1 / 3, 2 / 3, *(0.5 + 0.5 * math.cos(math.pi * k / 8) for k in range(9))]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[2] == 1 and found[6] == pytest.approx(0.5) and found[10] == 0 == rate_share(99, 10, 0.2, "cosine")
    assert [rate_share(step, 10, 0.2, "constant") for step in (0, 1, 2, 9)] == [1 / 3, 2 / 3, 1, 1]
    assert [rate_share(step, 4, 0.0, "constant") for step in range(4)] == [1] * 4
    assert rate_share(0, 1, 0.0, "cosine") == 1


# --- metrics ---

TRUTH = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1])
SAID = np.array([0, 1, 0, 1, 3, 2, 2, 0, 2, 1, 4])  # 3 is said and never true, 4 only where nothing is known
KNOWN = TRUTH >= 0


def scores(metrics, *batches) -> dict[str, float]:
    for said, truth in batches:
        metrics.update(torch.as_tensor(said), torch.as_tensor(truth))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_scores_of_masks_are_scikit_learns():
    """In two batches, with ignored pixels, a class that never occurs, and one that is nowhere."""
    shape = (1, 1, -1)
    parts = [(SAID[:4].reshape(shape), TRUTH[:4].reshape(shape)), (SAID[4:].reshape(shape), TRUTH[4:].reshape(shape))]
    found = scores(ClassScores("abcde", -1, ious=True), *parts)
    truth, said = TRUTH[KNOWN], SAID[KNOWN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = reference.balanced_accuracy_score(truth, said)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, said))
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, said, average="macro"))
    each = reference.jaccard_score(truth, said, average=None)
    assert [found[f"iou_{c}"] for c in "abcd"] == pytest.approx(list(each)) and math.isnan(found["iou_e"])
    assert found["miou"] == pytest.approx(each.mean())
    # By hand: class a has 2 right of 3 true and 3 said, b 1 of 2 and 2, c 3 of 4 and 3, d 0 of 0 and 1.
    assert found["miou"] == pytest.approx((2 / 4 + 1 / 3 + 3 / 4 + 0) / 4)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 3 / 4) / 3)


def test_where_nothing_counts_scores_are_nan():
    found = scores(ClassScores("ab", -1, ious=True), (torch.zeros(3, 2), torch.full((3, 2), -1)))
    assert found and all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("make", [classification, segmentation])
def test_validation_and_test_log_the_same_names_and_numbers(make):
    task = make()
    data = Toy(5)
    loader = DataLoader(data, 2, collate_fn=toy_data().val_dataloader().collate_fn)
    trainer = quiet_trainer(accelerator="cpu")
    (val,) = trainer.validate(task, loader, verbose=False)
    (test,) = trainer.test(task, loader, verbose=False)
    assert val == test and task.monitor in val
    logits = task(torch.stack([s["image"] for s in data]))
    truth = torch.stack([torch.as_tensor(s["mask" if isinstance(task, Segmentation) else "label"]) for s in data])
    assert val["loss"] == pytest.approx(float(task.loss(logits, truth).detach()), rel=1e-5)
    counts = truth != -1
    assert val["accuracy"] == pytest.approx(float((logits.argmax(1) == truth)[counts].float().mean()))


# --- what is done to a batch ---


def stepped(task, data: Toy, training: bool) -> dict:
    """The batch as a step gets it."""
    seen, target = [], task.target
    task.target = lambda b: target(seen.append(b) or b)
    trainer = quiet_trainer(accelerator="cpu", max_epochs=1)
    loader = DataLoader(data, 4, collate_fn=toy_data().val_dataloader().collate_fn)
    trainer.fit(task, loader) if training else trainer.validate(task, loader, verbose=False)
    return seen[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("augment", [True, False])
def test_batches_are_augmented_in_training_only(augment, training):
    data = Toy(4)
    x, mask = (torch.stack([sample[key] for sample in data]) for key in ("image", "mask"))
    b = stepped(segmentation(augment=augment), data, training)
    assert torch.equal(b["image"], x) == torch.equal(b["mask"], mask) == (not (augment and training))


def test_predicted_batches_are_those_of_the_task_in_order():
    task, data = segmentation().eval(), Toy(5, size=(50, 70))
    loader = DataLoader(data, 2, collate_fn=toy_data().val_dataloader().collate_fn)
    logits, truth = map(torch.cat, zip(*predict_batches(task, loader), strict=True))
    whole = task.resized(next(iter(DataLoader(data, 5, collate_fn=loader.collate_fn))))
    torch.testing.assert_close(logits, task(whole["image"]).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(truth, whole["mask"])
