"""APOLLO: algorithm 1 step by step, its state to the byte, and what used to go wrong with it."""

import copy
import io
import itertools
import math

import pytest
import torch
import wrapkit
from torch import nn
from wrapkit.ext.apollo import Apollo
from wrapkit.ext.apollo._apollo import projection


def matrix(*shape, dtype=torch.float32):
    return nn.Parameter(torch.randn(*shape, dtype=dtype))


def literal(weight, gradients, *, rank, scaling, scale=1.0, period=200, limit=1.01, lr=0.1, wd=0.0, eps=1e-6, seed=0):
    """Algorithm 1 as it is printed, for one matrix with m <= n."""
    m, n = weight.shape
    w, first, second, last = weight.clone(), torch.zeros(rank, n), torch.zeros(rank, n), 0.0
    for t, g in enumerate(gradients, 1):
        r = projection(seed, 0, m, rank, (t - 1) // period, torch.device("cpu")) @ g
        first = 0.9 * first + 0.1 * r
        second = 0.999 * second + 0.001 * r * r
        direction = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + eps)
        if scaling == "channel":
            update = g @ torch.diag(direction.norm(dim=0) / r.norm(dim=0))
        else:
            update = g * (direction.norm() / r.norm())
        if last and update.norm() > limit * last:
            update = update / update.norm() * limit * last
        last = update.norm().item()
        w = w - lr * math.sqrt(scale) * update - lr * wd * w
    return w


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (6, 5, 2), (10, 2, 3)])
@pytest.mark.parametrize(("scaling", "rank", "scale"), [("channel", 3, 1.0), ("tensor", 1, 128.0), ("channel", 6, 2.0)])
def test_it_is_the_algorithm_of_the_paper(shape, scaling, rank, scale):
    torch.manual_seed(0)
    weight = matrix(*shape)
    tall = shape[0] > math.prod(shape[1:])
    gradients = [torch.randn(shape) * 10 ** (i % 3 - 1) for i in range(7)]
    wide = [g.flatten(1).T if tall else g.flatten(1) for g in (weight.detach(), *gradients)]
    expected = literal(wide[0], wide[1:], rank=rank, scaling=scaling, scale=scale, period=3, wd=0.1)
    optimizer = Apollo([weight], 0.1, rank=rank, scaling=scaling, scale=scale, period=3, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    assert torch.allclose(weight, (expected.T if tall else expected).view(shape), rtol=1e-4, atol=1e-5)


def test_the_projection_changes_with_the_period_and_keeps_lengths():
    drawn = [projection(0, 0, 512, 64, period, torch.device("cpu")) for period in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    x = torch.randn(512)
    assert 0.7 < (drawn[0] @ x).norm() / x.norm() < 1.3
    assert not torch.equal(projection(1, 0, 512, 64, 0, torch.device("cpu")), drawn[0])


def held(state):
    return sum(t.numel() * t.element_size() for t in state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_the_formula_to_the_byte(dtype):
    m, n, r = 48, 96, 8
    for shape in [(m, n), (n, m)]:
        channel, tensor = matrix(*shape, dtype=dtype), matrix(*shape, dtype=dtype)
        channel.grad, tensor.grad = torch.randn_like(channel), torch.randn_like(tensor)
        full, mini = wrapkit.optimizer("apollo", [channel], rank=r), wrapkit.optimizer("apollo-mini", [tensor])
        full.step(), mini.step()
        assert held(full.state[channel]) == 4 * (2 * n * r + 2)
        assert held(mini.state[tensor]) == 4 * (2 * n + 2)


def test_rank_is_a_quarter_and_clamped_to_the_matrix():
    small, large = matrix(16, 40), matrix(16, 40)
    small.grad, large.grad = torch.randn_like(small), torch.randn_like(large)
    default, above = Apollo([small]), Apollo([large], rank=999)
    default.step(), above.step()
    assert default.state[small]["exp_avg"].shape == (4, 40)
    assert above.state[large]["exp_avg"].shape == (16, 40)


def test_above_350_million_parameters_the_rank_is_256():
    optimizer = Apollo([nn.Parameter(torch.empty(20_000, 20_000, device="meta"))])
    assert optimizer._default_rank(20_000) == 256
    assert Apollo([matrix(4, 8)])._default_rank(1024) == 256


def test_scale_front_puts_the_scale_into_the_limiters_norm():
    norms = []
    for front in (False, True):
        torch.manual_seed(0)
        weight = matrix(4, 8)
        weight.grad = torch.randn_like(weight)
        optimizer = Apollo([weight], scale=4.0, scale_front=front)
        optimizer.step()
        norms.append(optimizer.state[weight]["norm"].item())
    assert norms[1] == pytest.approx(2 * norms[0])


def test_norms_grow_by_one_percent_at_most_unless_the_limit_is_lifted():
    sizes = {}
    for limit in (1.01, None):
        torch.manual_seed(0)
        weight = matrix(4, 8)
        optimizer = Apollo([weight], lr=1.0, rank=2, limit=limit, weight_decay=0.0)
        steps = []
        for _ in range(5):
            before = weight.detach().clone()
            weight.grad = torch.randn_like(weight) * 10 ** len(steps)
            optimizer.step()
            steps.append((weight - before).norm().item())
        sizes[limit] = [b / a for a, b in itertools.pairwise(steps)]
    assert max(sizes[1.01]) <= 1.01 + 1e-4
    assert max(sizes[None]) > 1.1


def test_hidden_matrices_only(language_model):
    built = wrapkit.optimizer("apollo", language_model())
    shapes = {tuple(p.shape) for g in built.parts["apollo"].param_groups for p in g["params"]}
    assert shapes == {(32, 16), (16, 32)}


# What goes wrong elsewhere -----------------------------------------------------------------------------------


def test_an_infinite_gradient_does_not_reach_the_state(language_model, train):
    model = language_model()
    optimizer = wrapkit.optimizer("apollo", model, nonfinite="skip")
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer.step()
    assert str(optimizer.state_dict()) == str(before)
    assert optimizer.skipped_steps == 1
    assert all(math.isfinite(loss) for loss in train(model, optimizer, 3))


@pytest.mark.parametrize("scaling", ["channel", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_channels_and_tiny_gradients_give_no_nan(scaling, dtype):
    torch.manual_seed(0)
    for scale in (0.0, 1e-7, 1.0):
        weight = matrix(6, 12, dtype=dtype)
        optimizer = Apollo([weight], rank=2, scaling=scaling)
        for _ in range(3):
            weight.grad = (torch.randn(6, 12) * scale).to(dtype)
            weight.grad[:, 3] = 0
            weight.grad[2] = 0
            before = weight.detach().clone()
            optimizer.step()
            assert torch.isfinite(weight).all()
        assert (weight - before)[:, 3].abs().max() < 1e-2  # weight decay alone


def test_a_first_gradient_of_zero_does_not_freeze_it():
    weight = matrix(6, 12)
    start = weight.detach().clone()
    optimizer = Apollo([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight, start)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert (weight - start).norm() > 0.1


def test_second_moments_of_bfloat16_weights_decay():
    weight = matrix(4, 8, dtype=torch.bfloat16)
    optimizer = Apollo([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    high = optimizer.state[weight]["exp_avg_sq"].clone()
    assert high.dtype == torch.float32
    weight.grad = torch.zeros_like(weight)
    for _ in range(100):
        optimizer.step()
    assert torch.allclose(optimizer.state[weight]["exp_avg_sq"], high * 0.999**100)
    stuck = high.bfloat16()
    for _ in range(100):
        stuck = stuck * 0.999
    assert torch.equal(stuck, high.bfloat16())  # the control: in the weight's own type nothing decays


@pytest.mark.parametrize("name", ["apollo", "apollo-mini"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_from_a_weights_only_file_is_exact_across_a_period(name, dtype, language_model, train):
    def build():
        model = language_model().to(dtype)
        return model, wrapkit.optimizer(name, model, lr=1e-2, period=4)

    model, optimizer = build()
    train(model, optimizer, 6)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    twin, resumed = build()
    twin.load_state_dict(stored["model"])
    resumed.load_state_dict(stored["optimizer"])
    assert train(twin, resumed, 10) == train(model, optimizer, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_long_bias_costs_what_it_costs_adamw():
    layer = nn.Linear(64, 1024)
    optimizer = wrapkit.optimizer("apollo", layer)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert held(optimizer.state[layer.bias]) == 4 * (2 * 1024 + 1)


def test_weights_that_are_not_contiguous_are_updated_too():
    torch.manual_seed(0)
    plain = matrix(8, 4, 3, 3)
    last = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    for weight in (plain, last):
        torch.manual_seed(1)
        weight.grad = torch.randn(8, 4, 3, 3)
        Apollo([weight]).step()
    assert torch.allclose(plain, last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"scaling": "row"}, "scaling must be channel or tensor, got 'row'"),
        ({"period": 0}, "period must be at least 1 step, got 0"),
        ({"limit": 1.0}, "limit must be above 1, got 1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Apollo([matrix(2, 2)], **options)


def test_vectors_and_sparse_gradients_are_refused():
    with pytest.raises(ValueError, match=r"APOLLO takes matrices, got a parameter of shape \(3,\)"):
        Apollo([nn.Parameter(torch.zeros(3))])
    table = nn.Embedding(5, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="APOLLO takes dense gradients"):
        Apollo(table.parameters()).step()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["apollo", "apollo-mini"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_trains_and_resumes_exactly(name, dtype):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).to("cuda", dtype)
        return model, wrapkit.optimizer(name, model, lr=1e-2, period=4)

    def train(model, optimizer, steps):
        losses = []
        for _ in range(steps):
            loss = (model(x).float() - x.roll(1, 1).float()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    x = torch.randn(256, 64, device="cuda", dtype=dtype)
    model, optimizer = build()
    losses = train(model, optimizer, 30)
    assert losses[-1] < losses[0]
    assert all(s["exp_avg"].is_cuda and not s["step"].is_cuda for s in optimizer.parts["apollo"].state.values())
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    twin, resumed = build()
    twin.load_state_dict(stored["model"])
    resumed.load_state_dict(stored["optimizer"])
    assert train(twin, resumed, 10) == train(model, optimizer, 10)
