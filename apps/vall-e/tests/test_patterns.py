"""Layouts of codebooks against a naive enumeration of their steps, and their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vall_e.model.patterns import Layout, coarse_first, delay, parallel, unrolled

EMPTY = -1
frames_and_levels = st.tuples(st.integers(0, 12), st.integers(1, 6))


def codes_of(frames: int, levels: int) -> np.ndarray:
    """Every code another, so that one in a wrong place shows."""
    return np.arange(frames * levels).reshape(frames, levels)


def enumerated(codes: np.ndarray, steps: list[list[tuple[int, int]]]) -> np.ndarray:
    """A sequence written down step by step: which (frame, level) each holds."""
    sequence = np.full((len(steps), codes.shape[1]), EMPTY)
    for step, held in enumerate(steps):
        for frame, level in held:
            sequence[step, level] = codes[frame, level]
    return sequence


def check(layout: Layout, codes: np.ndarray, steps: list[list[tuple[int, int]]]) -> None:
    sequence = layout.spread(codes, EMPTY)
    np.testing.assert_array_equal(sequence, enumerated(codes, steps))
    np.testing.assert_array_equal(layout.gather(sequence), codes)
    assert np.sort(sequence[sequence != EMPTY]).tolist() == codes.flatten().tolist()
    for done in range(layout.length + 2):
        heard = {place for held in steps[:done] for place in held}
        whole = 0
        while whole < len(codes) and all((whole, q) in heard for q in range(codes.shape[1])):
            whole += 1
        assert layout.whole(done) == whole


@given(frames_and_levels)
def test_parallel(shape):
    frames, levels = shape
    check(parallel(frames, levels), codes_of(frames, levels), [[(t, q) for q in range(levels)] for t in range(frames)])


@given(st.integers(0, 12), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_delay_with_any_offsets(frames, offsets):
    steps = [
        [(step - o, q) for q, o in enumerate(offsets) if 0 <= step - o < frames]
        for step in range(frames + max(offsets) if frames else 0)
    ]
    check(delay(frames, offsets), codes_of(frames, len(offsets)), steps)


@given(frames_and_levels)
def test_unrolled(shape):
    frames, levels = shape
    steps = [[(t, q)] for t in range(frames) for q in range(levels)]
    check(unrolled(frames, levels), codes_of(frames, levels), steps)


@given(st.integers(0, 12), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_coarse_first(frames, stages):
    steps, first = [], 0
    for count in stages:
        steps += [[(t, q) for q in range(first, first + count)] for t in range(frames)]
        first += count
    check(coarse_first(frames, stages), codes_of(frames, sum(stages)), steps)


@given(frames_and_levels)
def test_layouts_that_are_the_same(shape):
    frames, levels = shape
    assert (coarse_first(frames, [levels]).steps == parallel(frames, levels).steps).all()
    assert (coarse_first(frames, [1] * levels).steps == delay(frames, [q * frames for q in range(levels)]).steps).all()


def test_places_that_cannot_be():
    for steps, message in (
        (np.array([[0, 1], [0, 2]]), "two codes of level 0 stand at step 0"),
        (np.array([[-1, 0]]), "found -1"),
        (np.zeros((3, 0), int), r"found shape \[3, 0\]"),
        (np.zeros(3, int), r"found shape \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Layout(steps)
    with pytest.raises(ValueError, match=r"expected shape \[3, 2\], found \[4, 2\]"):
        parallel(3, 2).spread(np.zeros((4, 2), int), EMPTY)
    with pytest.raises(ValueError, match=r"expected shape \[4, 2\], found \[3, 2\]"):
        delay(3, [0, 1]).gather(np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="expected 1 level or more"):
        coarse_first(3, [1, 0])
