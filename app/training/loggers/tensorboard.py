"""TensorBoard: event files in the folder `tb` of the run; scalars, pictures, histograms and text."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from app.registry import register


@register("logger")
class TensorBoard:
    """Writes event files; TensorBoard itself hides what a killed run had written beyond its checkpoint."""

    def open(self, folder: Path, step: int) -> TensorBoardLogger:
        return TensorBoardLogger(folder, name="", version="tb", default_hp_metric=False, purge_step=step)
