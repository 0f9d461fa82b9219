"""MLflow, by Lightning's MLFlowLogger; `pip install mlflow` first."""

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger

from app.registry import UserError, register


@register("logger")
class MlFlow:
    """Sends scalars to MLflow, under the name of the run.

    Args:
        experiment: where the runs lie.
        tracking_uri: of a server; null: the folder `mlruns` of the run.

    Raises:
        UserError: its package is not installed.
    """

    def __init__(self, *, experiment: str, tracking_uri: str | None) -> None:
        if find_spec("mlflow") is None:
            raise UserError("logger=mlflow: not installed; pip install mlflow, or use logger=tensorboard")
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def open(self, folder: Path, step: int) -> MLFlowLogger:
        return MLFlowLogger(
            self.experiment,
            run_name=folder.name,
            tracking_uri=self.tracking_uri,
            save_dir=str(folder / "mlruns"),
        )
