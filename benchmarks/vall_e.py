# /// script
# dependencies = ["transformers>=4.48"]
# ///
"""vall-e's model, decoding and loader, beside a plain transformers Llama of the same size, in one run.

    python benchmarks/vall_e.py [--quick] [--out FILE]       two sizes on this CPU, one thread
    python benchmarks/vall_e.py --gpu [--out FILE]           full size on CUDA: tokens/s, MFU, peak memory
    python benchmarks/vall_e.py --patterns FOLDER [--minutes M] [--out FILE]
                                                             AR+NAR beside delayed levels on the demo corpus: equal
                                                             size, M minutes of one thread's CPU time each

Each figure is the median of several runs, ours and the peer's in turn. The peer has the same trunk (width, layers,
heads, feed-forward) and is driven as one drives a llama: padded batches, logits of every position, its own cache.
"""

from __future__ import annotations

# ruff: noqa: E402 - this file has the name of the package, so its folder must be searched last
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path = [p for p in sys.path if Path(p).resolve() != HERE.resolve()] + [str(HERE)]

import statistics
import subprocess
import tempfile
import time
from typing import Any

import numpy as np
import torch
from benchmark_report import Report, Rows, argument_parser
from torch import Tensor, nn
from vall_e import Sample
from vall_e.model.generate import refine
from vall_e.model.growth import lay_out_weights
from vall_e.model.model import VallE
from vall_e.model.sampling import Sampling
from vall_e.model.sequence import Request, lay_out
from vall_e.model.spec import ModelSpec

PACKAGES = ("vall-e", "torch", "transformers", "numpy", "h5py")
SIZES = {"64 x 2": (64, 4, 2), "512 x 6": (512, 8, 6), "1024 x 12": (1024, 16, 12)}
FRAMES, PROMPT, PHONES = 225, 225, 60
# Seconds or rates of the system replaced, one contended thread (the design's table).
REPLACED = {
    "64 x 2": {"train step, s": 0.61, "AR 225, tokens/s": 109, "NAR 7 levels, s": 0.103},
    "512 x 6": {"train step, s": 8.4, "AR 225, tokens/s": 6.5, "NAR 7 levels, s": 1.99},
}


def timed(run, repeats: int, sync) -> float:
    """Seconds of one run."""
    found = []
    for _ in range(repeats):
        sync()
        start = time.perf_counter()
        run()
        sync()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


class Peer(nn.Module):
    """transformers' Llama over one table, trained with logits of every position of a padded batch."""

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=spec.dim,
            intermediate_size=round(spec.dim * spec.ffn),
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            max_position_embeddings=4096,
            hidden_act="gelu",
        )
        self.llama = LlamaForCausalLM(config)

    def loss(self, ids: Tensor) -> Tensor:
        return self.llama(input_ids=ids, labels=ids).loss

    @torch.inference_mode()
    def generate(self, prompt: Tensor, frames: int, cache: bool = True) -> None:
        self.llama.generate(
            prompt, max_new_tokens=frames, min_new_tokens=frames, do_sample=False, pad_token_id=0, use_cache=cache
        )


def samples(count: int, spec: ModelSpec, frames: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        Sample(
            rng.integers(3, 200, PHONES),
            rng.integers(0, spec.audio_tokens, (PROMPT, spec.levels)),
            rng.integers(0, spec.audio_tokens, (frames, spec.levels)),
        )
        for _ in range(count)
    ]


def never_stopping(model: VallE) -> None:
    """Random weights stop at random; with this bias they never do."""
    with torch.no_grad():
        model.classifiers.proj[0].bias[model.spec.stop] = -1e4


def laid_out(model: VallE, batch: list[Sample]) -> Any:
    """One batch with its levels spread as in training."""
    levels = [0, 0, 1, 2, 3, 4, 5, 6][: len(batch)]
    requests = [Request(s, "nar" if k else "ar", k) for s, k in zip(batch, levels, strict=True)]
    return lay_out(requests, model.spec).to(model.device)


def step_of(module: nn.Module, loss, device: str, half: bool):
    """A training step of AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss().backward()
        optimizer.step()

    step()  # warm
    return step


def in_turn(first, second, repeats: int, sync) -> tuple[float, float]:
    """Median seconds of two runs, taken in turn."""
    pairs = [(timed(first, 1, sync), timed(second, 1, sync)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


Found = dict[str, tuple[float | None, float | None]]
"""Ours and the llama's, by what was measured."""


def train(model: VallE, peer: Peer, batch: list[Sample], ids: Tensor, repeats: int, sync) -> Found:
    device, spec = model.device.type, model.spec
    ready = laid_out(model, batch)
    found: Found = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for half in (True,) if device == "cuda" else (False, True):
        ours = step_of(model, lambda: model(ready).nll.mean(), device, half)
        theirs = step_of(peer, lambda: peer.loss(ids), device, half)
        seconds = in_turn(ours, theirs, repeats, sync)
        found["train step bf16, s" if half else "train step, s"] = seconds
    if device == "cuda":
        trunk = sum(p.numel() for p in model.model.parameters())
        attention = 12 * spec.layers * spec.dim * (PHONES + PROMPT + FRAMES)  # forward and backward, not causal
        rate = ready.rows.numel() / seconds[0]
        found["train, tokens/s"] = (rate, ids.numel() / seconds[1])
        found["train, TFLOP/s"] = ((6 * trunk + attention) * rate / 1e12, None)
        found["MFU of 989 TFLOP/s"] = ((6 * trunk + attention) * rate / 989e12, None)
        found["peak memory, GiB"] = (torch.cuda.max_memory_allocated() / 2**30, None)
    return found


def speak(model: VallE, peer: Peer, batch: list[Sample], ids: Tensor, repeats: int, sync, lengths) -> Found:
    device, found = model.device.type, {}
    lay_out_weights(model)
    one, prompt = [batch[0].with_response(None)], ids[:1, : PHONES + PROMPT]

    def ar(frames: int = 225, asked: list[Sample] = one) -> None:
        model.generate(asked, "ar", temperature=0, max_frames=frames)

    for frames in lengths:
        ours, theirs = in_turn(lambda f=frames: ar(f), lambda f=frames: peer.generate(prompt, f), repeats, sync)
        found[f"AR {frames}, tokens/s"] = (frames / ours, frames / theirs)
    # As the system replaced decodes: every step reads all positions again.
    found["AR 225 without a cache, tokens/s"] = (None, 225 / timed(lambda: peer.generate(prompt, 225, False), 1, sync))
    eight = [s.with_response(None) for s in batch]
    found["AR 225 x 8, tokens/s"] = (8 * 225 / timed(lambda: ar(asked=eight), 1, sync), None)
    model.compile_steps()
    start = time.perf_counter()
    ar()
    found["AR compiled: the first run, s"] = (time.perf_counter() - start, None)
    found["AR 225 compiled, tokens/s"] = (225 / timed(ar, repeats, sync), None)
    model.steps = None

    generator, spoken = torch.Generator(device), [batch[0]]

    def nar() -> None:
        with torch.inference_mode():
            refine(model, spoken, [batch[0].response[:, :1]], Sampling(0), generator)

    found["NAR 7 levels, s"] = (timed(nar, repeats, sync), None)
    found["NAR-len 25 steps, s"] = (
        timed(lambda: model.generate(spoken, "nar-len", temperature=0, frames=[FRAMES]), 1, sync),
        None,
    )
    if device == "cpu":
        model.to(torch.bfloat16)
        found["NAR 7 levels at bf16, s"] = (timed(nar, repeats, sync), None)
    return found


def measure(name: str, device: str, quick: bool) -> Rows:
    """Each figure of ours, of the llama beside it where it has one, and of the system replaced."""
    dim, heads, layers = SIZES[name]
    torch.manual_seed(0)
    spec = ModelSpec(dim=dim, heads=heads, layers=layers)
    model, peer = VallE(spec).to(device), Peer(spec, 2048).to(device)
    never_stopping(model)
    batch = samples(8, spec, FRAMES)
    ids = torch.randint(2048, (8, PHONES + PROMPT + FRAMES + 10), device=device)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats = 3 if quick else 5
    found = train(model, peer, batch, ids, repeats, sync)
    found |= speak(model.eval(), peer.eval(), batch, ids, repeats, sync, (75, 225) if quick else (75, 225, 750))
    replaced = REPLACED.get(name, {})
    return {what: {"ours": ours, "llama": peer, "replaced": replaced.get(what)} for what, (ours, peer) in found.items()}


def loader_rate() -> float:
    """Samples a second that the loader makes from HDF5, without workers."""
    from vall_e.config import Dataset
    from vall_e.data.batches import Loader, TrainingSet
    from vall_e.data.order import batch_sampler
    from vall_e.data.store import CodecInfo, DatasetFile, Utterance, write_dataset
    from vall_e.data.tasks import PromptRules, Prompts, Tasks
    from vall_e.tokenizer import NaiveTokenizer

    rng, tokenizer = np.random.default_rng(0), NaiveTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.h5"
        phonemes = "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˌoʊvɚ ðə lˈeɪzi dˈɑːɡ"
        utterances = (
            Utterance(
                f"training/g/s{i % 20}/u{i}",
                rng.integers(0, 1024, (int(rng.integers(150, 400)), 8)),
                np.array(tokenizer.encode(phonemes)),
                "",
                phonemes,
                "en",
                4.0,
            )
            for i in range(2000)
        )
        write_dataset(path, utterances, tokenizer, CodecInfo("encodec", "x", 8, 1024, 75.0))
        file = DatasetFile(path)
        entries = file.entries("training", ["*/*"])
        tasks = Tasks(file, Prompts(file, entries, PromptRules((3.0, 3.0), 0.1), 75.0))
        training_set = TrainingSet(entries, tasks, ["tts"], ModelSpec(), 0, range(8))
        loader = Loader(training_set, batch_sampler(Dataset(), entries, 16, 75.0))
        rates = []
        for _ in range(3):  # the first epoch reads the file, the others what it keeps in memory
            start = time.perf_counter()
            for _ in loader:
                pass
            rates.append(len(entries) / (time.perf_counter() - start))
        return statistics.median(rates)


def start_up() -> float:
    """CPU seconds of `vall-e-train --help`."""
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'vall_e.cli.train', '--help'], stdout=subprocess.DEVNULL, check=True)\n"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime)"
    )
    runs = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(5)]
    return statistics.median(runs)


def patterns(folder: Path, minutes: float) -> Rows:
    """The demo's model trained as AR+NAR and with delayed levels, each for so much CPU time: what came of it."""
    from importlib import resources

    from vall_e.cli.train import _prepare_demo
    from vall_e.config import Config
    from vall_e.summary import describe, report
    from vall_e.training import Training

    class Timed(Training):
        """Ends by CPU time, which other programs on the machine do not shorten."""

        started: float | None = None

        def _feed(self, *args: Any) -> Any:
            if self.started is None:
                self.started = time.process_time()
            if self._time_used() >= 1:
                self.trainer.time_budget = 1e-9
            return super()._feed(*args)

        def _time_used(self) -> float:
            return 0.0 if self.started is None else (time.process_time() - self.started) / (60 * minutes)

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(resources.files("vall_e").joinpath("demo.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    found: Rows = {}
    for name, delay in (("ar+nar", "false"), ("delay", "true")):
        overrides = [f"models.0.name={name}", f"models.0.experimental.delay={delay}", "evaluation.frequency=0"]
        overrides += ["trainer.minutes=0", "trainer.save_frequency=100000"]
        cfg = Config.from_yaml(path, overrides=overrides)
        if not cfg.hdf5_path.exists():
            _prepare_demo(cfg)
        run = Timed(cfg, commands=False)
        if run.run().reason == "signal":
            sys.exit(f"stopped while {name} trained: nothing was measured")
        result = report(run)
        print(name, describe(run, result), flush=True)
        speech = result.speech
        assert speech is not None
        found[name] = {"steps": run.trainer.step, "minutes": minutes}
        found[name] |= {f"{what}, nats": after for what, (_, after) in result.losses.items()}
        found[name] |= {"nearest of 16": speech.nearest, "own distance": speech.own, "other": speech.other}
        found[name] |= {"mel-STFT": speech.train_mel_stft[0], "STOI": speech.train_stoi[0]}
    return found


def main() -> None:
    parser = argument_parser(__doc__, "vall_e[-gpu|-patterns]")
    parser.add_argument("--gpu", action="store_true", help="full size on CUDA")
    parser.add_argument("--patterns", type=Path, metavar="FOLDER", help="AR+NAR beside delayed levels, trained in here")
    parser.add_argument("--minutes", type=float, default=4.2, help="of CPU time for each of them (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if args.gpu else "cpu"
    kind = "-gpu" if args.gpu else "-patterns" if args.patterns else ""
    facts = {"device": torch.cuda.get_device_name()} if args.gpu else {}
    report = Report(f"vall_e{kind}", PACKAGES, args.out, **facts)
    if args.patterns:
        report.table("delayed levels beside AR+NAR", patterns(args.patterns, args.minutes))
    else:
        for name in ["1024 x 12"] if args.gpu else ["64 x 2", "512 x 6"]:
            report.table(name, measure(name, device, args.quick))
        if not args.gpu:
            rows = {"loader, samples/s": {"ours": loader_rate()}, "--help, CPU s": {"ours": start_up()}}
            report.table("loader and start", rows)
    report.close()


if __name__ == "__main__":
    main()
