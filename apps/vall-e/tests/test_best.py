"""Which checkpoint is the best, and that it can be spoken with."""

import json

import pytest
import torch
from vall_e.evaluation import Evaluator
from vall_e.summary import Report, describe
from vall_e.weights import load_weights

LOSSES = {0: 9.0, 2: 4.0, 4: 1.0, 6: 3.0, 7: 2.0}


@pytest.fixture
def scripted(monkeypatch):
    """Losses by the step, whatever the model."""
    own = Evaluator.losses
    step = {"now": 0}

    def losses(self, split, size, should_stop=lambda: False):
        return dict.fromkeys(own(self, split, size), LOSSES[step["now"]])

    monkeypatch.setattr(Evaluator, "losses", losses)
    return step


def test_steps_that_are_seldom_both_evaluated_and_saved_are_told(fresh):
    from vall_e.config import Config
    from vall_e.training import Training

    def notes(evaluated, saved):
        frequencies = [f"evaluation.frequency={evaluated}", f"trainer.save_frequency={saved}"]
        return Training(Config.from_yaml(fresh / "config.yaml", overrides=frequencies), commands=False).notes()

    assert notes(400, 100) == notes(0, 100) == []
    assert "every 2000 steps" in notes(400, 250)[0]


@pytest.mark.parametrize("adapted", [False, True])
def test_the_best_is_named_and_speaks(train, prepared, fresh, scripted, monkeypatch, adapted):
    from vall_e.training import Training

    own = Training._evaluate

    def evaluate(self, trainer):
        scripted["now"] = trainer.step
        return own(self, trainer)

    monkeypatch.setattr(Training, "_evaluate", evaluate)
    base = prepared / "ckpt/ar+nar/fp32.sft"
    more = ["loras=[{name: mine, rank: 2}]", f"models.0.path={base}"] if adapted else []
    often = ["evaluation.frequency=2", "trainer.save_frequency=1", "trainer.keep_last_checkpoints=2"]
    training, _ = train(fresh, 7, *often, *more)
    held = {int(p.parent.name): json.loads(p.read_text())["metrics"] for p in training.ckpt_dir.glob("*/manifest.json")}
    assert {step: metrics.get("val.loss") for step, metrics in held.items()} == {4: 1.0, 6: 3.0, 7: 2.0}
    assert training.best() == (4, 1.0)
    losses = {f"{split}.{name}": (9.0, 2.0) for split in training.splits for name in training.evaluator.measures}
    said = describe(training, Report(losses, None))
    assert "Best        step 4, of the checkpoints that were evaluated: validation loss 1.0000" in said
    weights = training.weights_at(4)
    assert f"--lora {weights}" in said if adapted else f"--model {weights}" in said
    spoken = load_weights(base, lora=weights) if adapted else load_weights(weights)
    last = load_weights(base, lora=training.weights_path) if adapted else load_weights(training.weights_path)
    differ = [n for n, t in spoken.model.state_dict().items() if not torch.equal(t, last.model.state_dict()[n])]
    assert differ
