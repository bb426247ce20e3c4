"""Save a model in both forms and read it back."""

import tempfile
from pathlib import Path

import stateio
import torch

folder = Path(tempfile.mkdtemp())
model = torch.nn.Linear(2, 3)
for suffix in (".sft", ".pt"):
    path = stateio.save({"module": model.state_dict(), "stats": {"step": 7}}, folder / f"model{suffix}")
    print(path.name, stateio.load_into(path, model).complete, stateio.load(path)["stats"])
