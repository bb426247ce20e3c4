"""Train on batches of similar duration, be killed, go on with the next batch."""

import json
import random

from samplers import BucketSampler

random.seed(0)
durations = [min(30.0, random.lognormvariate(1.5, 0.6)) for _ in range(5000)]  # seconds
BUDGET = 200.0  # seconds of a padded batch


def train(state: dict | None, steps: int) -> tuple[list[list[int]], dict]:
    """`steps` batches from `state` on; returns them and the state to go on from."""
    sampler = BucketSampler(durations, max_cost=BUDGET, seed=1)
    if state is not None:
        sampler.load_state_dict(state)
    batches: list[list[int]] = []
    while len(batches) < steps:  # each round of this loop is an epoch, or the rest of one
        for batch in sampler:
            assert max(durations[i] for i in batch) * len(batch) <= BUDGET
            batches.append(batch)
            if len(batches) == steps:
                break
    return batches, sampler.state_dict()


uninterrupted, _ = train(None, 400)
first, state = train(None, 150)
rest, _ = train(json.loads(json.dumps(state)), 250)
assert first + rest == uninterrupted
print(BucketSampler(durations, max_cost=BUDGET, seed=1).report())
print("150 batches + 250 after a restart = 400 without one; the state:", json.dumps(state))
