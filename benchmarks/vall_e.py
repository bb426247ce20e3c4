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
from vall_e.model.model import VallE
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
    def generate(self, prompt: Tensor, frames: int) -> None:
        self.llama.generate(prompt, max_new_tokens=frames, min_new_tokens=frames, do_sample=False, pad_token_id=0)


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


def training_step(model: VallE, batch: list[Sample]) -> tuple[Any, int]:
    """(a step over one batch with its levels spread as in training, tokens it trains)."""
    levels = [0, 0, 1, 2, 3, 4, 5, 6][: len(batch)]
    requests = [Request(s, "nar" if k else "ar", k) for s, k in zip(batch, levels, strict=True)]
    laid_out = lay_out(requests, model.spec).to(model.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            model(laid_out).nll.mean().backward()
        optimizer.step()

    return step, laid_out.rows.numel()


def measure(name: str, device: str, quick: bool) -> Rows:
    """Each figure of ours, of the llama beside it where it has one, and of the system replaced."""
    dim, heads, layers = SIZES[name]
    torch.manual_seed(0)
    spec = ModelSpec(dim=dim, heads=heads, layers=layers)
    model = VallE(spec).to(device)
    never_stopping(model)
    batch = samples(8, spec, FRAMES)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats = 3 if quick else 5
    found: dict[str, tuple[float, float | None]] = {}

    step, tokens = training_step(model, batch)
    peer = Peer(spec, 2048).to(device)
    ids = torch.randint(2048, (8, PHONES + PROMPT + FRAMES + 10), device=device)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, fused=True)

    def peer_step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            peer.loss(ids).backward()
        optimizer.step()

    for run in (step, peer_step):
        run()  # warm
    ours, theirs = [], []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        ours.append(timed(step, 1, sync))
        theirs.append(timed(peer_step, 1, sync))
    found["train step, s"] = (statistics.median(ours), statistics.median(theirs))
    if device == "cuda":
        trunk = sum(p.numel() for p in model.model.parameters())
        attention = 12 * layers * dim * (PHONES + PROMPT + FRAMES)  # forward and backward, a token, not causal
        rate = tokens / statistics.median(ours)
        found["train, tokens/s"] = (rate, ids.numel() / statistics.median(theirs))
        found["train, TFLOP/s"] = ((6 * trunk + attention) * rate / 1e12, None)
        found["MFU of 989 TFLOP/s"] = ((6 * trunk + attention) * rate / 989e12, None)
        found["peak memory, GiB"] = (torch.cuda.max_memory_allocated() / 2**30, None)

    model.eval()
    prompt = ids[:1, : PHONES + PROMPT]
    for frames in (75, 225) if quick else (75, 225, 750):
        one = [batch[0].with_response(None)]
        ar = timed(lambda f=frames, s=one: model.generate(s, "ar", temperature=0, max_frames=f), repeats, sync)
        llama = timed(lambda f=frames: peer.generate(prompt, f), repeats, sync)
        found[f"AR {frames}, tokens/s"] = (frames / ar, frames / llama)
    eight = [s.with_response(None) for s in batch]
    ar = timed(lambda: model.generate(eight, "ar", temperature=0, max_frames=225), 1, sync)
    found["AR 225 x 8, tokens/s"] = (8 * 225 / ar, None)
    from vall_e.model.generate import refine
    from vall_e.model.sampling import Sampling

    generator = torch.Generator(device)
    one, codes = [batch[0]], [batch[0].response[:, :1]]

    def nar() -> None:
        with torch.inference_mode():
            refine(model, one, codes, Sampling(0), generator)

    found["NAR 7 levels, s"] = (timed(nar, repeats, sync), None)
    found["NAR-len 25 steps, s"] = (
        timed(lambda: model.generate(one, "nar-len", temperature=0, frames=[FRAMES]), 1, sync),
        None,
    )
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
        training_set = TrainingSet(entries, tasks, ["tts"], ModelSpec(), 0)
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
