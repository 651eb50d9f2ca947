"""transformers' ViTMAE under a strategy in the real Trainer."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'huggingface'")

from safetensors.torch import load_file
from transformers import (
    Trainer,
    TrainingArguments,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from amn_masking import AdversarialMasking, MaskingStrategy, PatchMask, RandomMasking, watch
from amn_masking.adapters.huggingface import MaskedTrainerMixin, masked_forward, names_as_saved
from tests.conftest import ROOT, thorough_only
from tests.helpers.small_vit_mae import adversarial, build, pictures

FIRST = "masking.network.convolutions.0.weight"


class MaskedTrainer(MaskedTrainerMixin, Trainer): ...


def train(
    folder, model, cls=MaskedTrainer, data=None, resume=None, optimizers=(None, None), **args
):
    """The Trainer after ``max_steps`` steps on random pictures."""
    options = dict(max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, seed=5)
    options |= dict(use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no")
    data = [{"pixel_values": image} for image in pictures()] if data is None else data
    arguments = TrainingArguments(str(folder), **options | dict(logging_steps=2) | args)
    torch.manual_seed(4)
    trainer = cls(model, arguments, train_dataset=data, eval_dataset=data, optimizers=optimizers)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_wrong_models_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"got ViTMAEModel.*encoder alone"):
        masked_forward(build().vit, pictures(), adversarial())
    with pytest.raises(TypeError, match="got float"):
        masked_forward(build(), pictures(), 0.75)
    with pytest.raises(ValueError, match=r"model\.masking = AdversarialMasking"):
        train(tmp_path, build())


def test_trainer_trains_both_networks_and_logs_the_masks(tmp_path):
    model = build(adversarial(strength=dict(start=-1, end=1)))
    before = weights(model)
    trainer = train(tmp_path, model)
    after = weights(model)
    assert not torch.equal(before[FIRST], after[FIRST])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    # Means over two steps of a schedule that goes from -1 by 0.5 a step.
    assert [entry["strength"] for entry in logs] == [-0.75, 0.25]
    for entry in logs:
        assert entry["mask_ratio"] == entry["mask_ratio_min"] == entry["mask_ratio_max"] == 0.5
        assert entry["adversarial_gain"] > 0
        assert 0 < entry["reconstruction"] < entry["loss"]
        assert entry["score_spread"] > 0


def test_a_last_batch_without_a_masked_patch_has_no_gain_to_log(tmp_path):
    class Unmasked(MaskingStrategy):
        def forward(self, images, generator=None, valid=None):
            return PatchMask.from_mask(torch.zeros(len(images), *self.grid(images)))

    trainer = train(tmp_path, build(Unmasked(8)), max_steps=1, logging_steps=1)
    entry = trainer.state.log_history[0]
    assert entry["loss"] == entry["reconstruction"] == entry["mask_ratio"] == 0
    assert math.isnan(entry["adversarial_gain"])


def test_logging_changes_nothing(tmp_path):
    one, other = build(adversarial()), build(adversarial())
    train(tmp_path, one, logging_steps=1)
    train(tmp_path, other, logging_steps=100)
    assert_equal(weights(one), weights(other))


def test_random_masking_is_the_stock_trainer(tmp_path):
    stock, masked = build(mask_ratio=0.5), build(RandomMasking(0.5, 8))
    train(tmp_path, stock, Trainer)
    train(tmp_path, masked)
    assert_equal(weights(stock), weights(masked))


@pytest.mark.parametrize("of_pixels", [False, True])
def test_patches_without_data_reach_the_strategy_by_the_default_arguments(tmp_path, of_pixels):
    """What stands in them, NaN included, changes no weight and no evaluation."""
    valid = torch.rand(8, 16).argsort(1) >= 3
    pixels = valid.reshape(8, 4, 1, 4, 1).expand(-1, -1, 8, -1, 8).reshape(8, 32, 32)
    trained, found = [], []
    for fill in (0.0, float("nan")):
        model = build(adversarial())
        masks = []
        model.masking.register_forward_hook(lambda m, args, out, kept=masks: kept.append(out))
        data = [
            {"pixel_values": image.where(shown, fill), "valid": shown if of_pixels else patches}
            for image, shown, patches in zip(pictures(), pixels, valid, strict=True)
        ]
        trainer = train(tmp_path, model, data=data, label_names=["pixel_values"])
        assert trainer.args.remove_unused_columns
        trained.append(weights(model))
        found.append(trainer.evaluate()["eval_loss"])
        assert not any(made.mask[~made.valid].any() for made in masks)
    assert_equal(*trained)
    assert found[0] == found[1] > 0


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    """Over an epoch's end and in the middle of one, the schedule included."""
    options = dict(max_steps=7, save_strategy="steps", save_steps=3)
    strength = dict(start=-1, end=1)
    whole = build(adversarial(strength=strength))
    train(tmp_path, whole, **options)
    resumed = build(adversarial(strength=strength))
    torch.manual_seed(9)
    train(tmp_path, resumed, resume=str(tmp_path / "checkpoint-3"), **options)
    assert_equal(weights(whole), weights(resumed))
    assert resumed.masking.strength == whole.masking.strength


def test_accumulated_steps_are_one_large_step(tmp_path):
    """Also where the data has labels, by which the Trainer would count its items."""
    got = []
    for batch, accumulate in ((8, 1), (4, 2)):
        model = build(adversarial(estimator=dict(type="straight_through", noise=0)))
        # Plain gradient descent and no clipping: Adam would not notice a gradient twice as large.
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        data = [dict(pixel_values=image, labels=1) for image in pictures()]
        train(
            tmp_path,
            model,
            data=data,
            optimizers=(optimizer, None),
            max_steps=2,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=0,
        )
        got.append(weights(model))
    for name in got[0]:
        torch.testing.assert_close(got[0][name], got[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [dict(random_share=0.5), dict(prediction_ratio=0.25)])
def test_evaluation(tmp_path, options):
    """The reconstruction, without the adversary's terms, under masks that follow the scores."""
    model = build(adversarial(**options))
    trainer = train(tmp_path, model, label_names=["pixel_values"])
    before, strength = weights(model), model.masking.strength
    logged = len(trainer.state.log_history)
    found = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == found
    with torch.no_grad():
        expected = masked_forward(model.eval(), pictures(), model.masking)
    assert found == pytest.approx(expected.reconstruction.item(), rel=1e-6)
    assert_equal(before, weights(model))
    assert model.masking.strength == strength
    assert len(trainer.state.log_history) == logged + 2
    predicted = trainer.predict(trainer.eval_dataset).predictions
    assert predicted[0].shape == (8, 16, 192)
    assert (torch.from_numpy(predicted[1]) == expected.patch_mask.predicted).all()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (None, {}, r"missing in the file \(masking\.network.*comes from a run without masking\."),
        ({}, None, r"not in the model \(masking\.network.*comes from a run with a masking network"),
        (
            {},
            dict(network=dict(channels=8)),
            r"of another shape \(masking\.network.*comes from a run with another masking network\.",
        ),
    ],
)
def test_only_a_run_of_the_same_model_is_resumed(tmp_path, before, after, message):
    masking = [None if options is None else adversarial(**options) for options in (before, after)]
    first, second = (build(strategy) for strategy in masking)
    kept = dict(save_strategy="steps", save_steps=2)
    train(tmp_path, first, MaskedTrainer if masking[0] else Trainer, max_steps=2, **kept)
    held = weights(second)
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be resumed.*" + message):
        train(tmp_path, second, resume=str(tmp_path / "checkpoint-2"), **kept)
    assert_equal(held, weights(second))


def test_the_masking_network_is_loaded_as_the_docs_say(tmp_path):
    """from_pretrained leaves it behind; the lines of docs/huggingface.md bring it back."""
    model = build(adversarial())
    train(tmp_path, model, max_steps=2)
    folder = str(tmp_path / "saved")
    model.save_pretrained(folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/huggingface.md").read_text(), re.S)
    (block,) = (block for block in blocks if "safetensors" in block)
    names = dict(folder=folder, ViTMAEForPreTraining=ViTMAEForPreTraining)
    names["masking"] = AdversarialMasking(0.5, 8)
    exec(block, names)
    assert_equal(weights(names["model"]), weights(model))


class Layers(torch.nn.Module):
    """A network of the user's own, of a name that transformers 5 knows as its own."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(1, 1, 1)])

    def forward(self, images):
        return torch.sigmoid(self.layers[1](self.layers[0](images)))


@pytest.mark.parametrize("network", [None, Layers])
def test_a_network_is_read_back_under_whatever_names_it_was_saved(tmp_path, network):
    made = [adversarial(network=network and network()) for _ in range(2)]
    model, other = build(made[0]), build(made[1])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    with names_as_saved(other):
        other.load_state_dict(saved)
    assert_equal(weights(other), weights(model))
    own = {name[8:]: value for name, value in saved.items() if name.startswith("masking.")}
    if own.keys() == made[1].state_dict().keys():
        made[1].load_state_dict(own)
    else:  # by hand it is refused, as the docs say
        with pytest.raises(RuntimeError, match=r"Missing key.*network\.layers\.0\.weight"):
            made[1].load_state_dict(own)


def test_a_stock_trainer_that_never_asks_for_a_mask_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "STEPS", 3)
    with pytest.warns(UserWarning, match="training mode 3 times, but never asked.*TrainerMixin"):
        train(tmp_path, build(adversarial()), Trainer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*never asked")
        train(tmp_path, build(adversarial()))


def test_a_network_that_is_not_in_the_optimizer_is_warned_of(tmp_path, monkeypatch):
    """The strategy came after the optimizer."""
    monkeypatch.setattr(watch, "STEPS_TO_MOVE", 6)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.masking = adversarial()
    with pytest.warns(UserWarning, match="weights have not moved in 6.*to the optimizer"):
        train(tmp_path, model, optimizers=(optimizer, None), max_steps=7)
    model = build(adversarial())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*masks learn nothing")
        train(tmp_path, model, max_steps=7)


@pytest.mark.slow
def test_compiled_training_with_a_smaller_last_batch(tmp_path):
    """Equals training that is not compiled; the last batch of an epoch has three images of four."""
    got = []
    for options in ({}, dict(torch_compile=True, torch_compile_backend="eager")):
        torch._dynamo.reset()
        steady = dict(type="straight_through", noise=0)
        model = build(adversarial(estimator=steady, strength=dict(start=-1, end=1)))
        data = [{"pixel_values": image} for image in pictures(7)]
        train(tmp_path, model, data=data, **options)
        got.append(weights(model))
    for name in got[0]:
        torch.testing.assert_close(got[0][name], got[1][name], rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast(tmp_path):
    model = build(adversarial())
    trainer = train(tmp_path, model, bf16=True)
    assert all(torch.isfinite(weight).all() for weight in weights(model).values())
    assert all(weight.dtype == torch.float32 for weight in model.masking.parameters())
    assert trainer.state.log_history[0]["adversarial_gain"] > 0


def test_the_encoder_loads_as_ever(tmp_path):
    model = build(adversarial())
    train(tmp_path, model, save_strategy="steps", save_steps=4)
    folder = tmp_path / "checkpoint-4"
    assert_equal(weights(ViTMAEModel.from_pretrained(folder)), weights(model.vit))
    again = ViTMAEForPreTraining.from_pretrained(folder)
    assert_equal(weights(again), {k: v for k, v in weights(model).items() if "masking" not in k})
    stock = build()
    stock.load_state_dict(weights(model), strict=False)
    stock.save_pretrained(tmp_path / "stock")
    one, other = (
        ViTModel.from_pretrained(path, add_pooling_layer=False)
        for path in (folder, tmp_path / "stock")
    )
    assert_equal(weights(one), weights(other))
    assert_equal(weights(one), weights(ViTModel.from_pretrained(folder, add_pooling_layer=False)))


TWO_PROCESSES = """
import sys, torch
from tests.adapters.huggingface.test_trainer import adversarial, build, train, weights
unused = {"yes": True, "no": False}[sys.argv[2]]
model = build(adversarial())
trainer = train(sys.argv[1], model, ddp_backend="gloo", ddp_find_unused_parameters=unused)
account = weights(model), trainer.state.log_history
torch.save(account, f"{sys.argv[1]}/{trainer.args.process_index}.pt")
assert trainer.args.world_size == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("find_unused", ["yes", pytest.param("no", marks=thorough_only)])
def test_two_processes_end_with_one_masking_network(tmp_path, find_unused):
    """With the Trainer's own setting, which looks for unused parameters, and without."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run([*launcher, script, tmp_path, find_unused])
    (one, logs), (other, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_equal(one, other)
    assert not torch.equal(one[FIRST], adversarial().state_dict()["network.convolutions.0.weight"])
    assert logs[0]["adversarial_gain"] > 0


def run(command, folder=ROOT):
    """The output of a process in ``folder`` that finds this checkout."""
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
