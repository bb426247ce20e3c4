"""Fork writers of one file and kill each at a random moment; run by test_kill.py.

    python kill_writer.py FOLDER FORM RUNS SEED

Every load must find one whole save: all tensors equal to the same number, which the stats repeat.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import stateio
import torch

SHARD_BYTES = 300_000


def save(path: Path, number: int, form: str) -> None:
    state = {
        "module": {f"t{i}": torch.full((50_000,), float(number)) for i in range(8)},
        "stats": {"number": number},
    }
    stateio.save(state, path, shard_bytes=SHARD_BYTES if form == "sharded" else None)


def check(path: Path) -> int:
    state = stateio.load(path)
    number = state["stats"]["number"]
    for name, tensor in state["module"].items():
        assert torch.equal(tensor, torch.full((50_000,), float(number))), f"{name} is not of save {number}"
    return number


def main(folder: str, form: str, runs: int, seed: int) -> None:
    chance = random.Random(seed)
    path = Path(folder) / ("x.pt" if form == "pickle" else "x.sft")
    save(path, 0, form)
    last = 0
    for run in range(runs):
        writer = os.fork()
        if writer == 0:
            for number in range(last + 1, sys.maxsize):
                save(path, number, form)
        time.sleep(chance.uniform(0.001, 0.3 if form == "sharded" else 0.06))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        number = check(path)
        assert number >= last, f"run {run} went back from save {last} to {number}"
        last = number
    save(path, last + 1, form)
    assert check(path) == last + 1
    print(last, *sorted(p.name for p in Path(folder).iterdir()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
