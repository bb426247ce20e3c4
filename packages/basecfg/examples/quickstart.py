"""Declare a configuration and read it from the command line.

python quickstart.py --help
python quickstart.py trainer.iterations=10
"""

from basecfg import BaseConfig, Section


class Trainer(Section):
    iterations: int = 1000
    "Optimizer steps to take."


class Config(BaseConfig):
    trainer: Trainer


if __name__ == "__main__":
    config = Config.from_cli(description="Prints its configuration.")
    print(config.dumps(), end="")
    print(config.source_of("trainer.iterations"))
