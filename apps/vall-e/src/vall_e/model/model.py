"""The AR+NAR model: embeddings, trunk and output heads, with the tensor names of existing weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vall_e.model.attention import KVCache, Packed
from vall_e.model.growth import CompiledSteps, Growth, StaticGrowth
from vall_e.model.sequence import Batch, Request, Sample, lay_out
from vall_e.model.spec import LENGTH_DIGITS, ModelSpec
from vall_e.model.trunk import Trunk


class AudioEmbedding(nn.Module):
    """One table of codes a level: `embeddings.{level}.weight`."""

    def __init__(self, rows: Sequence[int], dim: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, dim) for n in rows)


class Classifiers(nn.Module):
    """The output heads: `proj.{head}.weight` and bias."""

    def __init__(self, rows: Sequence[int], dim: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Linear(dim, n, bias=bias) for n in rows)


@dataclass(frozen=True)
class Loss:
    """What a training pass returns.

    Attributes:
        nll: [G], the mean cross-entropy of each request's output rows, in nats; with `delay`, of each level of it.
        head: [G], the classifier of each.
        logits: [rows, classes] for each head, what the loss was computed from.
    """

    nll: Tensor
    head: Tensor
    logits: list[Tensor]


class VallE(nn.Module):
    """A VALL-E model of version 5.

    Args:
        spec: sizes and flags.

    Raises:
        ValueError: the offsets of `delay` are not those of so many levels.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.delay:
            _ = spec.offsets  # raises when they do not fit
        dim, codes, levels = spec.dim, spec.audio_tokens, spec.levels
        self.sep = nn.Parameter(torch.randn(dim) * 0.02)
        self.dropout_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.text_emb = nn.Embedding(spec.phoneme_tokens, dim)
        self.proms_emb = AudioEmbedding([codes] * levels, dim)
        self.resps_emb = AudioEmbedding([codes + 1] + [codes] * (levels - 1) + [codes + 1], dim)
        self.langs_emb = nn.Embedding(spec.langs, dim)
        self.tasks_emb = nn.Embedding(spec.tasks, dim)
        self.tones_emb = nn.Embedding(spec.tones, dim)
        self.rvq_l_emb = nn.Embedding(levels, dim)
        self.len_emb = nn.Embedding(LENGTH_DIGITS, dim)
        self.raw_text_emb = nn.Embedding(spec.text_tokens, dim)
        self.model = Trunk(spec)
        if spec.split_classifiers:
            self.classifiers = Classifiers(spec.classes, dim, spec.classifiers_bias)
        else:
            rows = spec.classifier_rows or max(spec.classes)
            self.classifier = nn.Linear(dim, rows, bias=spec.classifiers_bias)
        self.apply(self._initialise)
        self.steps: CompiledSteps | None = None

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.sep.device

    # Passes ------------------------------------------------------------------------------------------------

    def embed(self, batch: Batch) -> Tensor:
        """The input embeddings [N, D] of a batch."""
        return F.embedding(batch.rows, torch.cat([self.static_table(), self._frames(batch)]))

    def static_table(self) -> Tensor:
        """The rows [R, D] that are the same in each batch, in the order of `Tables`."""
        table = [
            torch.zeros_like(self.sep)[None],
            self.sep[None],
            self.text_emb.weight,
            self.langs_emb.weight,
            self.rvq_l_emb.weight,
            self.tones_emb.weight,
            self.tasks_emb.weight,
            self.len_emb.weight,
        ]
        return torch.cat(table)

    def _frames(self, batch: Batch) -> Tensor:
        """The rows [F, D] of all frames of prompts and responses: each the sum of what its levels look up."""
        if not len(batch.frames):
            return self.sep.new_zeros(0, self.spec.dim)
        table = torch.cat([e.weight for e in (*self.proms_emb.embeddings, *self.resps_emb.embeddings)])
        return F.embedding_bag(batch.codes, table, batch.frames, mode="sum")

    def hidden(self, batch: Batch, kept: Tensor | None = None) -> Tensor:
        """The trunk's states: of all positions [N, D], or of those kept."""
        attend = Packed(batch.lengths, batch.causal)
        return self.model(self.embed(batch), batch.positions, attend, kept=kept)

    def compile_steps(self) -> None:
        """Compile autoregressive steps from now on: once for each number of rows and size of cache that comes.

        Raises:
            ValueError: there is no compiler.
        """
        self.steps = CompiledSteps(self.model)

    def begin(self, batch: Batch, capacity: int, *, branching: bool = False) -> Growth | StaticGrowth:
        """Read what autoregressive requests begin with, so that `capacity` positions more can follow.

        Args:
            branching: whether rows will be repeated, which compiled steps cannot do.
        """
        index, valid = batch.ends_aligned()
        rows, width = index.shape
        spec, compiled = self.spec, self.steps is not None and not branching
        held = width if compiled else width + capacity
        cache = KVCache(spec.layers, rows, spec.heads, held, spec.dim // spec.heads, self.sep)
        # Padding takes the embedding of some position, and is seen by none.
        growth = Growth(self.model, cache, None if valid.all() else valid)
        growth.read(self.embed(batch)[index], batch.positions[index])
        return StaticGrowth(self.steps, growth, capacity) if compiled else growth

    def batch_logits(self, batch: Batch, every_head: bool = False) -> list[Tensor]:
        """The logits [m, classes] of the predictions, in their order, for each head that the batch uses, or for all."""
        states = self.hidden(batch, batch.kept)
        counts = dict(batch.heads)
        heads = range(len(self.spec.classes)) if every_head else counts
        outputs = batch.output.split([counts.get(head, 0) for head in heads])
        return [self.project(states[o], head) for head, o in zip(heads, outputs, strict=True)]

    def project(self, states: Tensor, head: int) -> Tensor:
        """The logits [..., classes] of states [..., D] under a head (see `head_of`)."""
        if self.spec.split_classifiers:
            return self.classifiers.proj[head](states)
        logits = self.classifier(states)
        if logits.shape[-1] < self.spec.classes[head]:
            raise ValueError(
                f"head {head} has {self.spec.classes[head]} classes, and the one classifier of these weights "
                f"{logits.shape[-1]} rows: they were not made for it"
            )
        return logits[..., : self.spec.classes[head]]

    def forward(self, batch: Batch, every_head: bool = False) -> Loss:
        """Cross-entropy of a batch's predictions, mean over each owner; those without a target do not count.

        Args:
            batch: of the requests.
            every_head: a head without a prediction takes part too, with gradients of 0: for backends that reduce
                gradients as they come, which has to be the same on all ranks whatever their batches hold.
        """
        batch = batch.to(self.device)
        by_head = self.batch_logits(batch, every_head)
        targets = batch.target.split([len(logits) for logits in by_head])
        rows = [
            F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")
            for logits, target in zip(by_head, targets, strict=True)
        ]
        none = torch.zeros(len(batch.owner_head), device=self.device)
        nll = none.index_add(0, batch.owner, torch.cat(rows))
        count = none.index_add(0, batch.owner, (batch.target >= 0).float())
        return Loss(nll / count.clamp_min(1), batch.owner_head, [logits for logits in by_head if len(logits)])

    # By sample ---------------------------------------------------------------------------------------------

    def loss(self, samples: Sequence[Sample], task: str = "tts", level: int = 0) -> Tensor:
        """The loss in nats of predicting `level` of the samples: mean over each response, then over samples.

        Raises:
            ValueError: there is no sample, or one has nothing that is to be predicted.
        """
        if not samples:
            raise ValueError("there is no sample to score")
        for i, sample in enumerate(samples):
            held = None if sample.response is None else np.shape(sample.response)
            if held is None or (level and not held[0]):
                raise ValueError(f"sample {i}: it has no response to score")
            if len(held) == 2 and held[1] <= level:
                raise ValueError(f"sample {i}: level {level} is asked for, and its response has {held[1]} levels")
        return self(self.batch_of(samples, task, level)).nll.mean()

    def logits(self, samples: Sequence[Sample], task: str = "tts", level: int = 0) -> list[Tensor]:
        """One [rows, classes] tensor a sample: the rows that predict its response.

        At level 0 there is one more than the response has frames, which predicts the stop token.
        """
        batch = self.batch_of(samples, task, level)
        if not batch.heads:  # nothing to be predicted
            return [self.sep.new_zeros(0, self.spec.classes[level]) for _ in samples]
        (logits,) = self.batch_logits(batch)
        return [logits[batch.owner == i] for i in range(len(samples))]

    def batch_of(self, samples: Sequence[Sample], task: str = "tts", level: int = 0) -> Batch:
        """The samples laid out for the pass that predicts `level` under a task, on the model's device."""
        requests = [request_of(sample, task, level) for sample in samples]
        return lay_out(requests, self.spec).to(self.device)

    def generate(self, samples: Sequence[Sample], modality: str | None = None, **options) -> list[np.ndarray]:
        """Codes [T, levels] for each sample: see `vall_e.model.generate.generate` for the options."""
        from vall_e.model.generate import generate

        return generate(self, samples, modality, **options)


def request_of(sample: Sample, task: str, level: int) -> Request:
    """The pass that predicts `level` of a sample under a task (`tts`, `delay`, `nar-len`, `stt` or `len`)."""
    if task == "tts":
        return Request(sample, "ar") if level == 0 else Request(sample, "nar", level)
    if task in ("delay", "nar-len", "stt", "len"):
        return Request(sample, task)
    raise ValueError(f"task: expected tts, delay, nar-len, stt or len, found {task!r}")
