"""`load(save(x, ".pt")) == load(save(x, ".sft")) == x` for any nesting."""

import datetime
import enum
import math
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import stateio
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


@st.composite
def tensors(draw):
    """Any dtype, zero to three dimensions, possibly empty, transposed or a slice."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = draw(st.integers(0, 2**31))
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.random.RandomState(seed).randint(0, 2 if dtype is torch.bool else 256, nbytes, dtype=np.uint8)
    tensor = torch.from_numpy(raw).view(dtype).reshape(shape) if nbytes else torch.empty(shape, dtype=dtype)
    view = draw(st.sampled_from(["whole", "transposed", "slice"]))
    if view == "transposed" and tensor.ndim > 1:
        tensor = tensor.transpose(0, -1)
    elif view == "slice" and tensor.ndim and tensor.shape[0] > 1:
        tensor = tensor[1:]
    return tensor


ARRAYS = st.sampled_from(
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.float32(1.5) * np.ones((2, 0)),
        np.array(3.0),
        np.array(["a", "bcd"]),
        np.arange(4, dtype=">f4"),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(8)[::-2],
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=("Cs",)), max_size=2),  # lone surrogates, which UTF-8 cannot hold
    st.binary(max_size=20),
    st.complex_numbers(),
    st.sampled_from([Path("a/b"), torch.float32, torch.device("cuda:1"), torch.Size([2, 3])]),
    st.sampled_from([np.float32(0.1), np.int64(-7), np.bool_(True), np.float64("nan"), np.str_("x")]),
    st.datetimes(),
    st.dates(),
    st.timedeltas(),
)
KEYS = st.one_of(
    st.text(max_size=5),
    st.integers(),
    st.booleans(),
    st.none(),
    st.sampled_from(["module", "config", "stats", "__metadata__", "stateio", "format", "$t", "$dict", "a.b"]),
    st.tuples(st.integers(), st.text(max_size=2)),
)
LEAVES = st.one_of(SCALARS, tensors(), ARRAYS)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.fixed_dictionaries({"module": st.dictionaries(st.text(max_size=5), inner, max_size=3)}),
    ),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(NESTED)
@example({"$t": "x"})
@example({"module": {"$dict": ()}})
@example({"module": {"$dict": {"$tuple": None}}})
@example({"\ud800\udc00": "\ud800\udc00"})
@example({"module": {"$t": torch.ones(1)}})
@example({"module": {"a": torch.ones(2)}, "config": {}})
@example({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)})
@example({"a": {1: torch.zeros(1), "1": torch.ones(1)}})
def test_both_forms_give_the_object_back(tmp_path_factory, same, obj):
    folder = tmp_path_factory.mktemp("parity")
    for suffix in (".pt", ".sft"):
        path = stateio.save(obj, folder / f"x{suffix}")
        assert same(stateio.load(path), obj)
        assert same(stateio.load(path, lazy=True), obj)


@pytest.mark.soak
@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(NESTED)
def test_both_forms_give_the_object_back_at_length(tmp_path_factory, same, obj):
    folder = tmp_path_factory.mktemp("parity")
    for suffix in (".pt", ".sft"):
        assert same(stateio.load(stateio.save(obj, folder / f"x{suffix}")), obj)


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    y: torch.Tensor


Pair = namedtuple("Pair", "left right")


def test_what_has_no_equal_is_normalised(tmp_path, suffix, same):
    counts = defaultdict(list)
    counts["a"].append(1)
    obj = {
        "enum": Color.RED,
        "int enum": Level.HIGH,
        "dataclass": Point(1, torch.ones(2)),
        "namedtuple": Pair(1, 2),
        "defaultdict": counts,
        "ordered": OrderedDict(b=1, a=2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bytearray": bytearray(b"ab"),
    }
    expected = {
        "enum": "red",
        "int enum": 3,
        "dataclass": {"x": 1, "y": torch.ones(2)},
        "namedtuple": (1, 2),
        "defaultdict": {"a": [1]},
        "ordered": {"b": 1, "a": 2},
        "parameter": torch.ones(2),
        "bytearray": b"ab",
    }
    assert same(stateio.load(stateio.save(obj, tmp_path / f"x{suffix}")), expected)


def test_optimizer_state_round_trips(tmp_path, suffix, same):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    loaded = stateio.load(stateio.save(optimizer.state_dict(), tmp_path / f"x{suffix}"))
    assert same(loaded, optimizer.state_dict())
    assert loaded["state"][0]["step"].ndim == 0
    torch.optim.AdamW(model.parameters()).load_state_dict(loaded)


def test_version_string_stays_a_string_and_two_tensor_dicts_stay_two(tmp_path, suffix, same):
    obj = {"version": "1.0", "a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}, "config": {}}
    assert same(stateio.load(stateio.save(obj, tmp_path / f"x{suffix}")), obj)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 0,
        torch.ones(2).to_sparse(),
        torch.ones(1, device="meta"),
        torch.zeros(2, dtype=torch.bits8),
    ],
)
def test_what_no_file_can_hold_is_named_and_nothing_is_written(tmp_path, suffix, value):
    with pytest.raises(stateio.UnsupportedObjectError, match=r"at a\.b: "):
        stateio.save({"a": {"b": value}}, tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


def test_an_object_that_contains_itself_is_refused(tmp_path, suffix):
    obj = {}
    obj["self"] = obj
    with pytest.raises(stateio.UnsupportedObjectError, match="contains itself"):
        stateio.save(obj, tmp_path / f"x{suffix}")


def test_date_times_with_zones(tmp_path, suffix, same):
    zone = datetime.timezone(datetime.timedelta(hours=2))
    obj = [
        datetime.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=zone),
        datetime.time(1, 2),
        {1, 2},
        frozenset("ab"),
    ]
    assert same(stateio.load(stateio.save(obj, tmp_path / f"x{suffix}")), obj)
