"""Blocks computed again: the same gradients to the bit, and fewer bytes held meanwhile."""

import contextlib
import copy
import pickle
import statistics
import time

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit import Checkpoint, Policy, UndoOrderError
from wrapkit._around import around_of
from wrapkit._saved import SavedTensors
from wrapkit.ext.unsloth import Offloader, checkpoint

WIDTH = 32


class Block(nn.Module):
    """Dropout, a keyword argument, a tuple of outputs."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.2)

    def forward(self, x, *, scale):
        hidden = self.drop(nn.functional.gelu(self.up(x)))
        return x + self.down(hidden) * scale, hidden.mean()


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.scale = nn.ModuleList(Block() for _ in range(4)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        total = 0
        for layer in self.layers:
            x, mean = layer(x, scale=self.scale)
            total = total + mean
        return x.square().mean() + total


def build():
    torch.manual_seed(0)
    return Stack()


def gradients(model, x, autocast=False):
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        model(x).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen_input", [False, True])
def test_gradients_are_exactly_equal(offload, autocast, frozen_input):
    model = build()
    x = torch.randn(64, 64, WIDTH, requires_grad=not frozen_input)
    expected = gradients(model, x, autocast)
    grad_of_x = None if frozen_input else x.grad.clone()
    with Checkpoint(Policy(["layers"]), offload=offload).apply(model):
        x.grad = None
        found = gradients(model, x, autocast)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert frozen_input or torch.equal(x.grad, grad_of_x)


def test_bytes_held_before_and_after():
    model, x = build(), torch.randn(64, 64, WIDTH)
    one = x.numel() * 4

    def held():
        with SavedTensors(model) as saved:
            model(x)
        return saved.here, saved.moved

    before, _ = held()
    with Checkpoint(Policy(["layers"])).apply(model):
        here, moved = held()
        assert here < before / 4
        assert 4 * one <= here <= 5 * one + 1000
        assert moved == 0
    with Checkpoint(Policy(["layers"]), offload=True).apply(model):
        here, moved = held()
        assert moved == 4 * one
        assert here <= one + 1000  # of the loss
    with Checkpoint(Policy(["layers"]), offload=True, skip_last=True).apply(model):
        assert held()[1] < 4 * one
    assert held() == (before, 0)


def test_a_parameter_or_a_view_of_one_as_an_input_stays():
    model = build()
    offloader, weight = Offloader(model.parameters(), small=0), model.layers[0].up.weight
    with SavedTensors(nn.Module()) as saved:
        checkpoint(offloader, lambda w, v, x: (w @ x).sum() + v.sum(), weight, weight[2:], torch.ones(WIDTH, 126))
    assert saved.moved == WIDTH * 126 * 4


class Copying(Offloader):
    """What an accelerator makes of the inputs, on the CPU: other tensors."""

    def __init__(self):
        super().__init__()
        self.packed = self.unpacked = 0

    def pack(self, tensor):
        self.packed += 1
        return [tensor.clone()]

    def unpack(self, packed):
        self.unpacked += 1
        return packed[0].clone()


def test_inputs_that_come_back_as_other_tensors_give_the_same_gradients():
    model, x = build(), torch.randn(64, 64, WIDTH, requires_grad=True)
    expected = gradients(model, x, autocast=True)
    grad_of_x, x.grad = x.grad, None
    offloader = Copying()
    with Checkpoint(Policy(["layers"]), offload=True).apply(model):
        for layer in model.layers:
            around_of(layer)[0].offloader = offloader
        found = gradients(model, x, autocast=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(x.grad, grad_of_x)
    assert offloader.packed == offloader.unpacked >= 4 * 2  # x and the scale, in each block


def test_without_gradients_nothing_is_kept():
    model, x = build(), torch.randn(4, WIDTH)
    with Checkpoint(Policy(["layers"]), offload=True).apply(model), SavedTensors(model) as saved, torch.no_grad():
        model(x)
    assert saved.bytes == 0


@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_with_their_own_weights(through):
    model, x = build(), torch.randn(4, WIDTH)
    with Checkpoint(Policy(["layers"]), offload=True).apply(model):
        twin = through(model)
        expected = gradients(model, x)
        assert all(torch.equal(a, b) for a, b in zip(gradients(twin, x), expected, strict=True))
        nn.init.zeros_(twin.layers[0].up.weight)
        assert not torch.equal(gradients(twin, x)[-1], expected[-1])
        assert all(torch.equal(a, b) for a, b in zip(gradients(model, x), expected, strict=True))


def test_undo_names_and_order():
    model = build()
    keys, kinds = model.state_dict().keys(), [type(m) for m in model.modules()]
    handle = Checkpoint(Policy(["layers.1", "layers.2.up"])).apply(model)
    assert handle.changed == ["layers.1", "layers.2.up"]
    assert isinstance(model.layers[1], Block)
    assert model.state_dict().keys() == keys
    with pytest.raises(ValueError, match=r"layers\.1 is checkpointed already"):
        Checkpoint(Policy(["layers"])).apply(model)
    later = wrapkit.replace(model, "bitlinear", Policy(["layers.0"]))
    handle.undo()
    later.undo()
    assert [type(m) for m in model.modules()] == kinds
    handle = Checkpoint(Policy(["layers.2.up"])).apply(model)
    model.layers[2].up.__class__ = nn.Linear
    with pytest.raises(UndoOrderError, match="the forward of a Linear has been changed again"):
        handle.undo()


def test_no_block():
    with pytest.raises(ValueError, match="no block to checkpoint: the policy chooses none in this Stack"):
        Checkpoint(Policy(["layers.0"]), skip_last=True).apply(build())


# On a GPU -------------------------------------------------------------------------------------------------------


class Blocking(Offloader):
    """The control: copies that the computation waits for."""

    def pack(self, tensor):
        kept = super().pack(tensor)
        return kept if isinstance(kept, torch.Tensor) else tensor.to("cpu")

    def unpack(self, packed):
        return packed.to("cuda")


@pytest.mark.gpu
def test_pinned_memory_and_a_side_stream_on_a_gpu(capsys):
    """Reports time and memory: plain, checkpointed, offloaded, and offloaded without overlap."""
    torch.manual_seed(0)
    width, rows = 4096, 16384
    block = lambda: nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))  # noqa: E731
    model = nn.Sequential(*[block() for _ in range(8)]).cuda().bfloat16()
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)

    def step():
        # Gradients stay: else the largest use would be the end of the backward pass, when all of them are there.
        model.zero_grad(set_to_none=False)
        torch.manual_seed(1)
        model(x).float().square().mean().backward()

    def measure(handle):
        with handle:
            step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, times = torch.cuda.memory_allocated(), []
            for _ in range(5):
                start = time.perf_counter()
                step()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            return statistics.median(times), torch.cuda.max_memory_allocated() - before, [
                p.grad.clone() for p in model.parameters()
            ]

    def blocking():
        handle = Checkpoint(Policy(["[0-9]"]), offload=True).apply(model)
        for module in model:
            around_of(module)[0].offloader = Blocking(model.parameters())
        return handle

    results = {
        "plain": measure(contextlib.nullcontext()),
        "checkpointed": measure(Checkpoint(Policy(["[0-9]"])).apply(model)),
        "offloaded": measure(Checkpoint(Policy(["[0-9]"]), offload=True).apply(model)),
        "offloaded, blocking copies": measure(blocking()),
    }
    with capsys.disabled():
        print()
        for name, (seconds, peak, _) in results.items():
            print(f"{name}: {1e3 * seconds:.1f} ms a step, {peak / 2**20:.0f} MiB above the weights")
        cost = results["offloaded"][0] - results["checkpointed"][0]
        without = results["offloaded, blocking copies"][0] - results["checkpointed"][0]
        print(f"overlap: {1 - cost / without:.2f} of the copies' time is hidden")
    expected = results["plain"][2]
    for name, (_, _, found) in results.items():
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name
    assert results["offloaded"][1] < results["checkpointed"][1] - 4 * x.numel() * 2
    assert results["offloaded"][0] < results["offloaded, blocking copies"][0]


@pytest.mark.gpu
def test_offloaded_gradients_under_autocast_on_a_gpu():
    model = build().cuda()
    x = torch.randn(64, 64, WIDTH, device="cuda", requires_grad=True)
    expected = gradients(model, x, autocast=True)
    with Checkpoint(Policy(["layers"]), offload=True).apply(model):
        for _ in range(3):
            found = gradients(model, x, autocast=True)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
