"""What differs between ranks is named."""

from __future__ import annotations

import distkit
import pytest
import torch
from distkit.same import _leaves
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda r: {"lr": 1 if r < 2 else 2}, "lr: rank 0 has 1, rank 2 has 2"),
        (lambda r: {"w": torch.full((2,), float(r == 1))}, r"w: rank 0 has float32\[2\] #"),
        (lambda r: {"a": 1, **({"b": 2} if r else {})}, "1 entries, rank 1 has 2 entries"),
        (lambda r: [torch.zeros(2 + (r == 2))], r"float32\[2\] #.*rank 2 has float32\[3\]"),
        (lambda r: {"w": torch.zeros(1, dtype=torch.float64 if r else torch.float32)}, "float64"),
    ],
)
def test_the_first_difference_is_named_on_every_rank(ranks, make, words):
    def fn():
        with pytest.raises(distkit.RanksDiffer, match=f"model differs between the ranks.*{words}"):
            distkit.check_same(make(distkit.rank()), "model")

    ranks(fn, 3)


def test_what_is_alike_passes(ranks):
    def fn():
        torch.manual_seed(0)
        distkit.check_same(torch.nn.Linear(3, 3).state_dict(), "model")
        distkit.check_same({"empty": torch.zeros(0), "scalar": torch.tensor(1.0), "list": [1, "a"]}, "x")

    ranks(fn)


trees = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=6,
)


@given(trees, trees)
def test_leaves_tell_trees_apart(a, b):
    if repr(a) != repr(b) and a != b:
        assert list(_leaves(a, "")) != list(_leaves(b, ""))
