"""The AR+NAR model: embeddings, trunk and output heads, with the tensor names of existing weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vall_e.model.sequence import Batch, Request, Sample, lay_out
from vall_e.model.spec import LENGTH_DIGITS, ModelSpec
from vall_e.model.trunk import KVCache, Trunk


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
    """What `VallE.batch_loss` returns.

    Attributes:
        per_request: [B], the mean cross-entropy of each request's output rows, in nats.
        head: [B], the classifier of each request.
        logits: [rows, classes] for each head of each pass, what the loss was computed from.
    """

    per_request: Tensor
    head: Tensor
    logits: list[Tensor]


class VallE(nn.Module):
    """A VALL-E model of version 5.

    Args:
        spec: sizes and flags.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
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
            self.classifier = nn.Linear(dim, max(spec.classes), bias=spec.classifiers_bias)
        self.apply(self._initialise)

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
        """The input embeddings [B, T, D] of a batch."""
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

    def hidden(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """The trunk's states [B, T, D]."""
        return self.model(self.embed(batch), batch.positions, valid=batch.valid, causal=batch.causal, cache=cache)

    def batch_logits(self, batch: Batch, cache: KVCache | None = None) -> list[tuple[Tensor, Tensor]]:
        """(indices into the batch's output rows [m], logits [m, classes]) for each head that the batch uses."""
        states = self.hidden(batch, cache).flatten(0, 1)[batch.output]
        result = []
        for head in batch.head.unique().tolist():
            index = (batch.head == head).nonzero().flatten()
            chosen = states if len(index) == len(states) else states[index]
            result.append((index, self.project(chosen, head)))
        return result

    def project(self, states: Tensor, head: int) -> Tensor:
        """The logits [..., classes] of states [..., D] under a head (see `head_of`)."""
        if self.spec.split_classifiers:
            return self.classifiers.proj[head](states)
        return self.classifier(states)[..., : self.spec.classes[head]]

    def forward(self, batches: Sequence[Batch]) -> Loss:
        """The losses of all requests of a training batch's passes, whichever level each of them is at."""
        losses = [self.batch_loss(batch.to(self.device)) for batch in batches]
        return Loss(
            torch.cat([loss.per_request for loss in losses]),
            torch.cat([loss.head for loss in losses]),
            [logits for loss in losses for logits in loss.logits],
        )

    def batch_loss(self, batch: Batch) -> Loss:
        """Cross-entropy of a batch's output rows, mean over each request; rows without a target do not count."""
        nll = torch.zeros(batch.size, device=self.device)
        count = torch.zeros_like(nll)
        head_of_request = torch.zeros(batch.size, dtype=torch.long, device=self.device)
        head_of_request[batch.owner] = batch.head
        by_head = self.batch_logits(batch)
        for index, logits in by_head:
            target, owner = batch.target[index], batch.owner[index]
            known = target >= 0
            rows = F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="none")
            nll = nll.index_add(0, owner, rows)
            count.index_add_(0, owner, known.float())
        return Loss(nll / count.clamp_min(1), head_of_request, [logits for _, logits in by_head])

    # By sample ---------------------------------------------------------------------------------------------

    def loss(self, samples: Sequence[Sample], task: str = "tts", level: int = 0) -> Tensor:
        """The loss in nats of predicting `level` of the samples: mean over each response, then over samples."""
        return self.batch_loss(self._batch(samples, task, level)).per_request.mean()

    def logits(self, samples: Sequence[Sample], task: str = "tts", level: int = 0) -> list[Tensor]:
        """One [rows, classes] tensor a sample: the rows that predict its response.

        At level 0 there is one more than the response has frames, which predicts the stop token.
        """
        batch = self._batch(samples, task, level)
        ((index, logits),) = self.batch_logits(batch)
        owner = batch.owner[index]
        return [logits[owner == i] for i in range(len(samples))]

    def _batch(self, samples: Sequence[Sample], task: str, level: int) -> Batch:
        requests = [request_of(sample, task, level) for sample in samples]
        return lay_out(requests, self.spec).to(self.device)

    def generate(self, samples: Sequence[Sample], modality: str = "ar+nar", **options) -> list[np.ndarray]:
        """Codes [T, levels] for each sample: see `vall_e.model.generate.generate` for the options."""
        from vall_e.model.generate import generate

        return generate(self, samples, modality, **options)


def request_of(sample: Sample, task: str, level: int) -> Request:
    """The pass that predicts `level` of a sample under a task (`tts`, `nar-len`, `stt` or `len`)."""
    if task == "tts":
        return Request(sample, "ar") if level == 0 else Request(sample, "nar", level)
    if task in ("nar-len", "stt", "len"):
        return Request(sample, task)
    raise ValueError(f"task: expected tts, nar-len, stt or len, found {task!r}")
