"""One language for choosing modules and parameters."""

import pytest
from torch import nn
from wrapkit import PatternError, Policy
from wrapkit._policy import matches


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("layers.1", ["layers.1", "layers.1.mlp.up"], ["layers.10", "layers", "xlayers.1"]),
        ("layers.*.mlp", ["layers.3.mlp", "layers.10.mlp.up"], ["layers.3.attn", "mlp", "layers.mlp"]),
        ("layers.[01].mlp", ["layers.0.mlp"], ["layers.2.mlp"]),
        ("*.k_proj", ["layers.0.attn.k_proj", "k_proj", "a.k_proj.weight"], ["layers.0.attn.k_proj2"]),
        ("*", ["anything", "a.b.c"], [""]),
        ("a.b?", ["a.b1"], ["a.b", "a.b.c"]),
    ],
)
def test_patterns(pattern, covered, not_covered):
    assert all(matches(pattern, name) for name in covered)
    assert not any(matches(pattern, name) for name in not_covered)


def names(chosen):
    return [name for name, _ in chosen]


def test_exclude_alone_means_all_the_rest(language_model):
    model = language_model()
    found = names(Policy(exclude=["layers.0"]).modules(model))
    assert "layers.1.0" in found
    assert not any(name.startswith("layers.0") for name in found)


def test_exclusion_wins_and_types_and_predicate_narrow(language_model):
    model = language_model()
    policy = Policy(["layers"], ["layers.1"], types=(nn.Linear,), predicate=lambda name, m: m.out_features == 32)
    assert names(policy.modules(model)) == ["layers.0.0"]


def test_parameters_once_and_by_their_module(language_model):
    model = language_model()
    assert names(Policy().parameters(model)).count("embedding.weight") == 1
    assert names(Policy(["*.weight"], types=(nn.LayerNorm,)).parameters(model)) == ["norm.weight"]
    assert names(Policy(["norm.bias"]).parameters(model)) == ["norm.bias"]


@pytest.mark.parametrize("policy", [Policy(["layer.*"]), Policy(exclude=["layers.7"])])
def test_a_pattern_that_covers_nothing_names_close_ones(language_model, policy):
    with pytest.raises(PatternError, match=r"'layers?\..' matches nothing in the model; did you mean .*layers"):
        policy.modules(language_model())


def test_mistakes_are_told_when_the_policy_is_made():
    with pytest.raises(TypeError, match="include is a list of patterns, got the single string 'layers'"):
        Policy("layers")
    with pytest.raises(ValueError, match=r"include=\[\] would choose nothing"):
        Policy([])
