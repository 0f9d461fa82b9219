"""TensorBoard: event files in the folder `tb` of the run;
scalars, pictures, histograms and text.
"""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from app.registry import register


class Events(TensorBoardLogger):
    """Lightning's, without the epoch that it adds to every point: a run is counted in steps."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(
            {name: value for name, value in metrics.items() if name != "epoch"}, step
        )


@register("logger")
class TensorBoard:
    """Writes event files; TensorBoard itself hides what a killed
    run had written beyond its checkpoint.
    """

    def open(self, folder: Path, step: int) -> TensorBoardLogger:
        return Events(folder, name="", version="tb", default_hp_metric=False, purge_step=step)
