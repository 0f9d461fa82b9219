"""What Lightning and the callbacks add to a step of the default model.

The bare loop computes the same step. It takes its turn whenever Lightning is about to begin a step,
so both meet the same load of the machine. The ratio is of the sums over all steps: a picture every
hundred steps counts with its share.
"""

import app.config.environment  # noqa: F401  isort: skip  before torch

import tempfile
from pathlib import Path
from time import perf_counter

import lightning

from app.config.build import build_callbacks, build_loggers, build_module, build_trainer_config
from app.config.compose import composed
from app.data.module import build_data
from app.training.trainer import fixed_to_machine, make_trainer
from benchmarks.bare import Bare
from benchmarks.report import Row, command

WARM_UP = 3  # steps


class Turns(lightning.Callback):
    """Lets the bare loop make a step between two steps of Lightning, and times both."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.batches = bare.batches()
        # of Lightning's step, of the bare one
        self.seconds: list[tuple[float, float]] = []
        self.last: float | None = None

    def on_train_batch_start(self, *args: object) -> None:
        start = perf_counter()
        self.bare.train_step(next(self.batches))
        end = perf_counter()
        if self.last is not None:
            self.seconds.append((start - self.last, end - start))
        self.last = end


def run(quick: bool, device: str = "cpu") -> list[Row]:
    """One row for every set of callbacks."""
    steps = 3 if quick else 101
    small = ["model=nano", "data.seq_len=64", "data.val_rows=8"] if quick else ["data.val_rows=8"]
    rows = []
    for callbacks in ("off", "brief", "full"):
        words = [
            *small,
            f"callbacks={callbacks}",
            f"trainer.max_steps={steps + WARM_UP}",
            "trainer.val_every=100000",
        ]
        with tempfile.TemporaryDirectory() as folder:
            pairs = fitted(words, Path(folder), device)[WARM_UP:]
        ours, bare = (sum(column) for column in zip(*pairs, strict=True))
        rows.append(
            {
                "what": f"callbacks={callbacks}",
                "steps": len(pairs),
                "s": ours / len(pairs),
                "bare_s": bare / len(pairs),
                "ratio": ours / bare,
            }
        )
    return rows


def fitted(words: list[str], folder: Path, device: str) -> list[tuple[float, float]]:
    """Trains as `train.py` does."""
    config = composed(words)
    config["trainer"] = fixed_to_machine(
        {**config["trainer"], "accelerator": "gpu" if device == "cuda" else "cpu"}
    )
    turns = Turns(Bare(words, device, config["trainer"]["precision"]))
    lightning.seed_everything(0, verbose=False)
    data = build_data(config["data"], config["tokenizer"], 0)
    module = build_module(config, data.vocab_size, data.domains, data.micro_batch_size)
    loggers = [logger.open(folder, 0) for logger in build_loggers(config)]
    trainer = make_trainer(
        build_trainer_config(config), folder, loggers, [turns, *build_callbacks(config)]
    )
    trainer.fit(module, datamodule=data)
    return turns.seconds


if __name__ == "__main__":
    command("loop", run)
