"""The model against a naive one, written out for one sample at a time and never optimised, over all flags."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vall_e import Sample
from vall_e.model.generate import lengths, transcribe
from vall_e.model.model import VallE
from vall_e.model.sequence import Request, lay_out
from vall_e.model.spec import LANGUAGES, TASKS, ModelSpec

FLAGS = list(
    itertools.product((True, False), (False, True), (True, False, "prom", "resp"), (True, False), (True, False))
)
NULL = {"phones": [1, 2], "prompt": [], "tone": None}


class Naive:
    """A version 5 model by its formulas: sequences are lists of segments, attention is a matrix."""

    def __init__(self, model: VallE) -> None:
        self.w, self.spec = {k: v.detach() for k, v in model.state_dict().items()}, model.spec

    def head(self, which: int, x):
        prefix = f"classifiers.proj.{which}" if self.spec.split_classifiers else "classifier"
        y = x @ self.w[f"{prefix}.weight"].T
        if self.spec.classifiers_bias:
            y = y + self.w[f"{prefix}.bias"]
        return y[:, : self.spec.classes[which]]

    def norm(self, x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.w[f"{name}.weight"]

    def trunk(self, x, positions, causal):
        size = self.spec.dim // self.spec.heads
        angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(0, size, 2).double() / size)
        cos, sin = (torch.cat([f(angles)] * 2, -1).float() for f in (torch.cos, torch.sin))

        def rotate(v):
            a, b = v[:, : size // 2], v[:, size // 2 :]
            return v * cos + torch.cat([-b, a], -1) * sin

        mask = torch.full((len(x), len(x)), -math.inf).triu(1) if causal else torch.zeros(len(x), len(x))
        for i in range(self.spec.layers):
            at = f"model.layers.{i}"
            h = self.norm(x, f"{at}.input_layernorm")
            q, k, v = (h @ self.w[f"{at}.self_attn.{n}_proj.weight"].T for n in "qkv")
            seen = []
            for part in (slice(j * size, (j + 1) * size) for j in range(self.spec.heads)):
                scores = rotate(q[:, part]) @ rotate(k[:, part]).T / math.sqrt(size) + mask
                seen.append(scores.softmax(-1) @ v[:, part])
            x = x + torch.cat(seen, -1) @ self.w[f"{at}.self_attn.o_proj.weight"].T
            h = self.norm(x, f"{at}.post_attention_layernorm")
            gate, up = (h @ self.w[f"{at}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
            x = x + (0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up) @ self.w[f"{at}.mlp.down_proj.weight"].T
        return self.norm(x, "model.norm")

    def rows(self, table, ids):
        return self.w[f"{table}.weight"][torch.as_tensor(np.asarray(ids, np.int64))]

    def prompt(self, parts, level):
        found = []
        for part in parts:
            if isinstance(part, str):
                found.append(self.rows("tasks_emb", [TASKS[part]]))
            elif len(part):
                used = range(max(1, level)) if self.spec.sums("prom") else [max(0, level - 1)]
                found.append(sum(self.rows(f"proms_emb.embeddings.{i}", part[:, i]) for i in used))
        return [torch.cat(found)] if found else []

    def response(self, codes, level, kind):
        if kind == "nar-len":
            return self.rows(f"resps_emb.embeddings.{self.spec.levels}", codes[:, 0])
        if level == 0:
            return self.rows("resps_emb.embeddings.0", codes[:, 0])
        used = range(level) if self.spec.sums("resp") else [level - 1]
        return sum(self.rows(f"resps_emb.embeddings.{i + 1}", codes[:, i]) for i in used)

    def states(self, s, output, level, kind):
        """All states, and how many positions the output segment has."""
        text = self.rows("text_emb", s["phones"])
        about = [self.rows("langs_emb", [s["language"]]), self.rows("rvq_l_emb", [level])]
        if kind == "stt":
            segments = [self.response(s["response"], 0, "ar"), *about, text]
        else:
            tone = [] if s["tone"] is None else [self.rows("tones_emb", [s["tone"]])]
            last = self.rows("len_emb", output) if kind == "len" else self.response(output, level, kind)
            segments = [text, *about, *self.prompt(s["prompt"], level), *tone, last]
        count = len(segments[-1])
        segments = [*(torch.cat([x, self.w["sep"][None]]) for x in segments[:-1]), segments[-1]]
        positions = torch.cat([torch.arange(len(x)) for x in segments])
        x = torch.cat(segments)
        if self.spec.unified_position_ids:
            positions = torch.arange(len(x))
        return self.trunk(x, positions, kind in ("ar", "len", "stt") or not self.spec.noncausal_masks), count

    def logits(self, s, kind, level=0, masked=None):
        """(logits of the output, its targets)."""
        spec, codes = self.spec, s["response"]
        if kind == "nar":
            h, n = self.states(s, codes, level, kind)
            return self.head(level, h[len(h) - n :]), codes[:, level]
        if kind == "nar-len":
            hidden = np.where(masked[:, None], spec.stop, codes)
            h, n = self.states(s, hidden, 0, kind)
            return self.head(spec.levels, h[len(h) - n :]), np.where(masked, codes[:, 0], -1)
        if kind == "ar":
            output, head = np.concatenate([codes, np.full((1, spec.levels), spec.stop)]), 0
            target = output[:, 0]
        elif kind == "len":
            digits = [int(c) for c in str(len(codes) + spec.length_offset)]
            output = target = [0, *digits, 10]
            head = spec.levels + 2
        else:
            output, head, target = None, spec.levels + 1, s["phones"]
        h, n = self.states(s, output, 0, kind)
        return self.head(head, h[len(h) - n - 1 : -1]), np.asarray(target)

    def loss(self, s, kind, level=0, masked=None):
        logits, target = self.logits(s, kind, level, masked)
        return F.cross_entropy(logits, torch.as_tensor(target), ignore_index=-1)

    def pair(self, s, output, level, kind, head, strength, rescale, last):
        """Logits of the last positions, guided when there is something to guide."""
        n = len(output) if last is None else last
        z = self.head(head, self.states(s, output, level, kind)[0][-n:])
        if strength == 1:
            return z
        null = self.head(head, self.states({**s, **NULL}, output, level, kind)[0][-n:])
        mixed = null + (z - null) * strength
        return mixed * (rescale * z.std(-1, keepdim=True) / mixed.std(-1, keepdim=True) + 1 - rescale)

    def ar(self, s, most, strength=1.0, rescale=0.75):
        codes = np.zeros((0, 1), int) if s["response"] is None else s["response"][:, :1]
        for _ in range(most):
            token = int(self.pair(s, codes, 0, "ar", 0, strength, rescale, 1).argmax())
            if token == self.spec.stop:
                break
            codes = np.concatenate([codes, [[token]]])
        return codes

    def nar(self, s, codes, strength=1.0, rescale=0.75):
        if not len(codes):
            return np.zeros((0, self.spec.levels), int)
        for level in range(1, self.spec.levels):
            z = self.pair(s, codes, level, "nar", level, strength, rescale, None)
            codes = np.concatenate([codes, z.argmax(-1).numpy()[:, None]], 1)
        return codes

    def demask(self, s, frames, steps, strength, rescale=0.75):
        codes, scores = np.zeros(frames, int), torch.ones(frames)
        for i, t in enumerate(torch.linspace(0, 1, steps).tolist()):
            count = min(max(int(math.cos(t * math.pi / 2) * frames), 1), max(frames - i, 1))
            masked = np.zeros(frames, bool)
            masked[scores.topk(count, largest=False).indices.numpy()] = True
            hidden = np.where(masked, self.spec.stop, codes)[:, None]
            z = self.pair(s, hidden, 0, "nar-len", self.spec.levels, max(strength, 2.5), rescale, None)
            codes, scores = np.where(masked, z.argmax(-1).numpy(), codes), z.softmax(-1).amax(-1)
        return self.nar(s, codes[:, None], max(strength, 2.5), rescale)

    def length(self, s):
        digits = []
        while len(digits) < 5:
            token = int(self.head(self.spec.levels + 2, self.states(s, [0, *digits], 0, "len")[0][-1:]).argmax())
            if token == 10:
                break
            digits.append(token)
        return max(1, int("".join(map(str, digits)) or 0) - self.spec.length_offset)

    def transcribe(self, s, most):
        ids = []
        while len(ids) < most + 2:
            h, _ = self.states({**s, "phones": ids}, None, 0, "stt")
            token = int(self.head(self.spec.levels + 1, h[-1:]).argmax())
            if token == 2:
                break
            ids.append(token)
        return ids[1:] if ids[:1] == [1] else ids


def drawn(seed: int) -> tuple[VallE, list[dict], np.random.Generator]:
    """A model of some shape and flags, and samples of every form."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    noncausal, unified, sums, bias, split = FLAGS[seed % len(FLAGS)]
    spec = ModelSpec(
        dim=16,
        heads=int(rng.choice([1, 2, 4])),
        layers=int(rng.integers(1, 4)),
        ffn=float(rng.choice([1, 2.5, 4])),
        audio_tokens=int(rng.choice([17, 24])),
        phoneme_tokens=40,
        text_tokens=1,
        levels=int(rng.choice([2, 3, 8, 9])),
        tones=3,
        noncausal_masks=noncausal,
        unified_position_ids=unified,
        audio_embedding_sums=sums,
        classifiers_bias=bias,
        split_classifiers=split,
        length_offset=int(rng.integers(2)),
    )
    model = VallE(spec).eval()
    with torch.no_grad():  # far enough from zero that nothing is decided by rounding
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.1 if "norm" in name or p.ndim == 1 else 0.4)

    def codes(most):
        return rng.integers(0, spec.audio_tokens, (int(rng.integers(1, most)), spec.levels))

    forms = (
        list,
        lambda: [codes(9)],
        lambda: ["ns", codes(9)],
        lambda: [codes(5), "tse", codes(9)],
        lambda: [codes(5), "soe", codes(5), "eoe", codes(5)],
        lambda: [codes(5), codes(5)],
        lambda: [codes(5)[:0]],
    )
    samples = [
        {
            "phones": [1, *rng.integers(3, 40, int(rng.integers(9))).tolist(), 2],
            "language": int(rng.integers(6)),
            "prompt": forms[rng.integers(len(forms))](),
            "tone": None if rng.random() < 0.6 else int(rng.integers(3)),
            "response": codes(13),
        }
        for _ in range(3)
    ]
    return model, samples, rng


def ours(s: dict) -> Sample:
    return Sample(s["phones"], s["prompt"] or None, s["response"], LANGUAGES[s["language"]], s["tone"])


SEEDS = range(0, 64, 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_losses(seed):
    model, samples, rng = drawn(seed)
    naive, asked = Naive(model), [ours(s) for s in samples]
    everything = [np.ones(len(s["response"]), bool) for s in samples]
    with torch.inference_mode():
        kinds = [("tts", "ar", 0), *(("tts", "nar", k) for k in range(1, model.spec.levels))]
        for task, kind, level in (*kinds, ("len", "len", 0), ("stt", "stt", 0), ("nar-len", "nar-len", 0)):
            for got, s, masked in zip(model.logits(asked, task, level), samples, everything, strict=True):
                torch.testing.assert_close(got, naive.logits(s, kind, level, masked)[0], atol=2e-5, rtol=0)
            want = sum(naive.loss(s, kind, level, m) for s, m in zip(samples, everything, strict=True)) / len(samples)
            torch.testing.assert_close(model.loss(asked, task, level), want, atol=2e-5, rtol=0)
        # All kinds of passes in one batch, in any order: each gets what it gets alone.
        mixed, want = [], []
        for s, sample in zip(samples, asked, strict=True):
            masked = rng.random(len(s["response"])) < 0.6
            masked[0] = True
            for kind, level in (
                ("ar", 0),
                ("nar", int(rng.integers(1, model.spec.levels))),
                ("nar-len", 0),
                ("len", 0),
            ):
                mixed.append(Request(sample, kind, level, masked if kind == "nar-len" else None))
                want.append(naive.loss(s, kind, level, masked))
        order = rng.permutation(len(mixed))
        nll = model(lay_out([mixed[i] for i in order], model.spec)).nll
        torch.testing.assert_close(nll, torch.stack([want[i] for i in order]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_decodes(seed):
    model, samples, rng = drawn(seed)
    naive, most = Naive(model), [int(n) for n in rng.integers(1, 12, len(samples))]
    strength, rescale, steps = float(rng.choice([1.5, 3])), float(rng.choice([0, 0.75, 1])), int(rng.choice([1, 4, 10]))
    open_ended = [{**s, "response": None} for s in samples]
    with torch.inference_mode():
        for given in (open_ended, samples):  # a response is gone on from
            asked, options = [ours(s) for s in given], {"temperature": 0, "max_frames": most}
            plain = [naive.ar(s, n) for s, n in zip(given, most, strict=True)]
            guided = [naive.ar(s, n, strength, rescale) for s, n in zip(given, most, strict=True)]
            same(model.generate(asked, "ar", **options), plain)
            same(
                model.generate(asked, "ar+nar", **options), [naive.nar(s, c) for s, c in zip(given, plain, strict=True)]
            )
            same(model.generate(asked, "ar", cfg_strength=strength, cfg_rescale=rescale, **options), guided)
        asked = [ours(s) for s in open_ended]
        got = model.generate(asked, "nar-len", temperature=0, frames=most, steps=steps, cfg_strength=strength)
        same(got, [naive.demask(s, n, steps, strength) for s, n in zip(open_ended, most, strict=True)])
        assert lengths(model, asked) == [naive.length(s) for s in open_ended]
        same(transcribe(model, [ours(s) for s in samples], 10), [naive.transcribe(s, 10) for s in samples])


def same(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
