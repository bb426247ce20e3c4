"""Training on several ranks, started as users start it."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

OVERRIDES = ["evaluation.size=0", "evaluation.loss_size=4", "trainer.save_frequency=3", "hyperparameters.batch_size=4"]


def train(folder, ranks, *overrides):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "vall_e.cli.train", "--yaml", "config.yaml", *OVERRIDES, *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("backend", ["ddp", "accelerate"])
def test_two_ranks_train_and_one_goes_on(fresh, backend):
    train(fresh, 2, "trainer.iterations=3", f"trainer.backend={backend}")
    assert (fresh / "ckpt/ar+nar/fp32.sft").is_file()
    said = train(fresh, 1, "trainer.iterations=6")
    assert "resumed from" in said
    assert "6 steps" in said


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="installs on Linux alone")
@pytest.mark.parametrize("stage", [0, 2])
def test_deepspeed_trains_resumes_and_exports(fresh, stage):
    backend = ["trainer.backend=deepspeed", f"trainer.deepspeed.zero_optimization_level={stage}"]
    train(fresh, 1, "trainer.iterations=3", *backend)
    said = train(fresh, 1, "trainer.iterations=6", *backend)
    assert "resumed from" in said
    from vall_e.weights import load_weights

    assert load_weights(fresh / "ckpt/ar+nar/fp32.sft").stats["global_step"] == 6


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="installs on Linux alone")
def test_ranks_whose_batches_have_other_levels(fresh):
    """ZeRO 2 reduces gradients as they come; one sample a rank hardly ever has the level of the other's."""
    few = ["hyperparameters.batch_size=1", "trainer.iterations=6"]
    train(fresh, 2, *few, "trainer.backend=ddp", "models.0.name=ddp")
    train(fresh, 2, *few, "trainer.backend=deepspeed", "trainer.deepspeed.zero_optimization_level=2")
    import stateio

    ddp, zero = (stateio.load(fresh / f"ckpt/{name}/fp32.sft")["module"] for name in ("ddp", "ar+nar"))
    for name, weight in ddp.items():
        # A head that no rank used moves on with its momentum under DeepSpeed, and rests under DDP.
        if not name.startswith("classifiers"):
            torch.testing.assert_close(zero[name], weight, rtol=0, atol=1e-3, msg=name)
