"""A `tokenizer.json` in the place of the naive tokenizer: its ids, its errors, and its way into dataset and weights."""

import json
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors
from vall_e.config import Config
from vall_e.data.open import DatasetOf
from vall_e.data.shards import write_index
from vall_e.data.store import CodecInfo, DatasetError, DatasetFile, Utterance, write_dataset
from vall_e.tokenizer import NaiveTokenizer, UnknownSymbol, conflict
from vall_e.tokenizer_json import JsonTokenizer, TokenizerError
from vall_e.training import Training
from vall_e.weights import WeightsError, load_weights

# Ids of a tokenizer that existing weights were trained with, as far as these tests see them.
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, " ": 4, "(": 7, ")": 8, "—": 10, "a": 16, "b": 17}
VOCABULARY |= {
    "e": 20,
    "n": 28,
    "o": 29,
    "ɔ": 50,
    "ʊ": 56,
    "ʔ": 70,
    "ˈ": 72,
    "ː": 74,
    "ˈo": 99,
    "ˈoʊ": 100,
    "nˈoʊ": 172,
}
KNOWN = ["", "  ", "ɔː—nˈoʊ", "ʔˈa", "aːːb", "ː", "a\tb\n", "(en)", "A"]


def text_of(vocabulary=VOCABULARY, *, unknown="<unk>", wrapped=True) -> str:
    merges = [m for m in (("ˈ", "o"), ("ˈo", "ʊ"), ("n", "ˈoʊ")) if "".join(m) in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown))
    if wrapped:
        ends = [(s, vocabulary[s]) for s in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer.to_str()


def every_phoneme() -> dict[str, int]:
    """Ids for all symbols of the naive vocabulary and their characters, at places of their own."""
    characters = sorted({c for symbol in NaiveTokenizer().vocabulary for c in symbol} | set("123456789"))
    return {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: 300 + i for i, c in enumerate(characters)}}


@pytest.fixture
def tokenizer() -> JsonTokenizer:
    return JsonTokenizer(text_of(), "tokenizer.json")


@pytest.mark.parametrize("wrapped", [True, False])
def test_ids_of_existing_weights(golden, wrapped):
    tokenizer = JsonTokenizer(text_of(wrapped=wrapped), "tokenizer.json")
    cases = {
        c["text"]: c["tokenizer_json_ids"] for c in json.loads((golden / "tokenizer_cases.json").read_text())["cases"]
    }
    for text in KNOWN:
        assert tokenizer.encode(text, unknown="replace") == cases[text], text
    assert pickle.loads(pickle.dumps(tokenizer)).encode("ʔˈa") == cases["ʔˈa"]


def test_unknown_symbols_are_named_dropped_or_replaced(tokenizer):
    with pytest.raises(UnknownSymbol, match=r"'3' \(U\+0033\) at position 2"):
        tokenizer.encode("na3")
    assert tokenizer.encode("na3", unknown="drop") == [1, 28, 16, 2]
    assert tokenizer.encode("na3", unknown="replace") == [1, 28, 16, 0, 2]
    silent = JsonTokenizer(text_of(unknown=None), "tokenizer.json")  # leaves unknown symbols out by itself
    assert silent.encode("na3", unknown="drop") == [1, 28, 16, 2]
    with pytest.raises(UnknownSymbol, match=r"'3' \(U\+0033\) at position 2"):
        silent.encode("na3")


@pytest.mark.parametrize("text", ["anb", "nb", "aanbb", "anobb"])
@pytest.mark.parametrize("model", ["BPE", "Unigram"])
def test_without_an_unknown_token_the_symbol_that_is_lost_is_named(text, model):
    known = {s: i for i, s in enumerate(["<s>", "</s>", " ", "a", "b", "o", "ʊ"])}
    kinds = {"BPE": models.BPE(vocab=known, merges=[]), "Unigram": models.Unigram([(s, -1.0) for s in known])}
    tokenizer = JsonTokenizer(Tokenizer(kinds[model]).to_str(), "tokenizer.json")
    for end in ("", "ʊ"):  # more than a byte, of which offsets take the bytes for those of what was lost
        with pytest.raises(UnknownSymbol, match=rf"'n' \(U\+006E\) at position {text.index('n')} "):
            tokenizer.encode(text + end)
        spoken = text.replace("n", "") + end
        assert (
            tokenizer.encode(text + end, unknown="drop") == tokenizer.encode(spoken) == [0, *map(known.get, spoken), 1]
        )


def test_nothing_is_cut_or_filled_up(tokenizer):
    file = Tokenizer.from_str(text_of())
    file.enable_truncation(3)
    file.enable_padding(length=12, pad_token="<unk>")
    assert JsonTokenizer(file.to_str(), "tokenizer.json").encode("ababab") == tokenizer.encode("ababab")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text_of(unknown="[UNK]"), r"its unk_token '\[UNK\]' is not in its vocabulary; add it there, or set"),
        (None, "no such file; put the tokenizer.json there"),
        ("{}", "not a tokenizer.json that"),
        (text_of({k: v for k, v in VOCABULARY.items() if k != "</s>"}, wrapped=False), "lacks </s>"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "config.yaml").write_text("tokenizer_path: tokenizer.json")
    cfg = Config.from_yaml(tmp_path / "config.yaml")
    with pytest.raises(TokenizerError, match=message):
        cfg.chosen_tokenizer()


def test_a_configuration_that_asks_for_the_naive_one_gets_it(tmp_path):
    (tmp_path / "config.yaml").write_text("tokenizer: naive\ntokenizer_path: ./tokenizer.json")
    assert Config.from_yaml(tmp_path / "config.yaml").chosen_tokenizer() is None


def test_a_run_with_it_trains_exports_and_speaks(fresh):
    (fresh / "tokenizer.json").write_text(text_of(every_phoneme()))
    short = ["trainer.iterations=3", "evaluation.size=0", "evaluation.loss_size=4", "models.0.name=mine"]
    with_it = ["tokenizer_path=tokenizer.json"]
    cfg = Config.from_yaml(fresh / "config.yaml", overrides=[*short, *with_it])
    training = Training(cfg, commands=False)
    assert training.spec.phoneme_tokens == max(every_phoneme().values()) + 1
    utterance = training.data.file.read(training.splits["val"][0].key)
    assert utterance.phone_ids.tolist() == cfg.chosen_tokenizer().encode(utterance.phonemes)
    training.run()
    voice = load_weights(training.weights_path)
    assert voice.tokenizer.encode(utterance.phonemes) == utterance.phone_ids.tolist()

    # What belongs to another tokenizer is refused, wherever it comes from.
    naive = Config.from_yaml(
        fresh / "config.yaml", overrides=[*short, f"models.0.path={training.weights_path}", "models.0.name=other"]
    )
    with pytest.raises(ValueError, match="trained with another tokenizer than this dataset's"):
        Training(naive, commands=False)
    with pytest.raises(WeightsError, match=r"trained with another tokenizer than the one given \(tokenizer_path\)"):
        load_weights(training.weights_path, tokenizer=JsonTokenizer(text_of(), "other.json"))
    stored = Config.from_yaml(fresh / "config.yaml", overrides=[*with_it, "dataset.retokenize_text=false"])
    with pytest.raises(DatasetError, match="phoneme ids are of another tokenizer"):
        DatasetOf(stored)


def test_a_dataset_keeps_it_with_ids_above_a_byte(tmp_path):
    vocabulary = every_phoneme()
    tokenizer = JsonTokenizer(text_of(vocabulary), "tokenizer.json")
    ids = np.array(tokenizer.encode("həlˈoʊ"))
    assert ids.max() > 255
    u = Utterance("training/g/s/u", np.zeros((4, 2), int), ids, "hello", "həlˈoʊ", "en", 1.0)
    codec = CodecInfo("melvq", "x", 2, 8, 10.0)
    write_dataset(tmp_path / "data.1-of-1.h5", [u], tokenizer, codec)
    write_index(tmp_path / "data.h5", [tmp_path / "data.1-of-1.h5"])
    for retokenize in (True, False):
        file = DatasetFile(tmp_path / "data.h5", retokenize=retokenize)
        assert file.read(u.key).phone_ids.tolist() == ids.tolist()
        assert file.tokenizer.vocabulary == vocabulary
    write_dataset(tmp_path / "data.2-of-2.h5", [], NaiveTokenizer(), codec)
    with pytest.raises(DatasetError, match="different tokenizers"):
        write_index(tmp_path / "data.h5", sorted(tmp_path.glob("data.*-of-*.h5")))


def test_tokenizers_agree_when_one_knows_more():
    old = NaiveTokenizer()
    assert conflict(old, old.extended(["ʃˈyː"])) is None
    assert "'a'" in conflict(old, NaiveTokenizer({"a": 1}))
