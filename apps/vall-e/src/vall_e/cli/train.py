"""`vall-e-train`: trains; without arguments, the embedded demo."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from vall_e.config import Config

DEMO = Path("training/demo/config.yaml")

_DESCRIPTION = """\
Train a VALL-E model.

Without --yaml, the embedded demo: a corpus spoken by espeak-ng is built under training/demo/, a small model is
trained on it in about six minutes on two cores, evaluated and exported. A second run goes on where the first one
stopped. While it trains, type: save, eval, export, quit, lr 1e-4, status, help; eval@500 acts at step 500.
Ctrl-C saves and exits."""

_EPILOG = """\
examples:
  vall-e-train
  vall-e-train trainer.minutes=30
  vall-e-train --yaml training/mine/config.yaml hyperparameters.batch_size=16"""


def main(argv: list[str] | None = None) -> int:
    try:
        return train(_configured(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("\nvall-e-train: interrupted", file=sys.stderr)
        return 130


def _configured(argv: list[str]) -> Config:
    """The configuration; the demo's file is written where none is named, and stays when all else is right."""
    new = not DEMO.exists() and not {"--yaml", "--help", "-h"} & {a.partition("=")[0] for a in argv}
    if new:
        DEMO.parent.mkdir(parents=True, exist_ok=True)
        DEMO.write_text(resources.files("vall_e").joinpath("demo.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    try:
        return Config.from_cli(
            argv,
            prog="vall-e-train",
            description=_DESCRIPTION,
            epilog=_EPILOG,
            default_yaml=DEMO if DEMO.exists() else None,
            env_prefix="VALLE_",
        )
    except SystemExit:
        if new:
            DEMO.unlink()
            for folder in (DEMO.parent, DEMO.parent.parent):
                if not any(folder.iterdir()):
                    folder.rmdir()
        raise


def train(cfg: Config) -> int:
    """Prepare what is missing, train, measure and say what came of it; on several ranks when torchrun started us."""
    import distkit
    from stateio import StateFileError
    from trainloop import CheckpointError
    from wrapkit import BackendUnavailable

    from vall_e.data.store import DatasetError
    from vall_e.espeak import EspeakUnavailable

    known = (DatasetError, EspeakUnavailable, CheckpointError, StateFileError, BackendUnavailable, ValueError, OSError)
    if cfg.trainer.backend == "deepspeed":
        distkit.fill_env()  # it reads the environment that torchrun would set, also on one process
    try:
        with distkit.session():
            return _train(cfg)
    except known as e:
        print(f"vall-e-train: {e}", file=sys.stderr)
        return 1


def _train(cfg: Config) -> int:
    import distkit

    from vall_e.summary import describe, report
    from vall_e.training import Training

    with distkit.leader_first():
        if cfg.demo.enabled and not cfg.hdf5_path.exists():
            _prepare_demo(cfg)
    training = Training(cfg)
    if distkit.is_leader():
        for line in training.notes():
            print(line)
        cfg.dump()
    result = training.run()
    if result.reason == "signal":
        if distkit.is_leader():
            print(f"stopped at step {result.step}; the same command goes on from there", file=sys.stderr)
        return result.exit_code
    if distkit.is_leader():
        print(describe(training, report(training)))
    return result.exit_code


def _prepare_demo(cfg: Config) -> None:
    from vall_e.corpus.demo import build_corpus
    from vall_e.data import prepare
    from vall_e.progress import Bar

    with Bar(None, "speaking", cfg.demo.utterances) as bar:
        recordings = build_corpus(
            cfg.rel_path / "corpus",
            cfg.demo.utterances,
            cfg.demo.validation,
            progress=lambda done, _: bar.to(done),
        )
    prepare.report(prepare.prepare(cfg, recordings))


if __name__ == "__main__":
    sys.exit(main())
