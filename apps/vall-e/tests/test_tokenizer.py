import json

import pytest
from vall_e.tokenizer import NaiveTokenizer, UnknownSymbol


def test_ids_of_existing_weights(golden):
    cases = json.loads((golden / "tokenizer_cases.json").read_text())["cases"]
    assert len(cases) > 10
    for case in cases:
        known = [i for i in case["naive_ids"] if i is not None]
        assert NaiveTokenizer().encode(case["text"], unknown="drop") == known, case["text"]


def test_an_unknown_symbol_is_named_with_its_place():
    with pytest.raises(UnknownSymbol, match=r"'3' \(U\+0033\) at position 2"):
        NaiveTokenizer().encode("ni3")
    with pytest.raises(UnknownSymbol, match=r"'y' .* at position 1 of 'ty ɛ' .*: use weights trained on this language"):
        NaiveTokenizer().encode("ty ɛ")


def test_extending_keeps_old_ids():
    old = NaiveTokenizer()
    new = old.extended(["ʃˈyː"])
    assert new.encode("a") == old.encode("a")
    assert new.vocabulary["yː"] == max(old.vocabulary.values()) + 1
