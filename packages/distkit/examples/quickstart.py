"""Four ranks on this machine agree on a few things."""

import distkit


def work() -> str:
    total = distkit.agree(distkit.rank(), op="sum")
    mean = distkit.all_reduce_mean({"loss": float(distkit.rank())})
    try:
        with distkit.raise_together():
            if distkit.rank() == 2:
                raise OSError("no space")
    except distkit.RankFailed as e:
        return f"sum {total}, mean {mean['loss']}, {e}"
    return "unreachable"


if __name__ == "__main__":
    for line in distkit.launch(work, 4):
        print(line)
