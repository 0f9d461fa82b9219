"""MLflow, by Lightning's MLFlowLogger; `pip install mlflow` first."""

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger

from app.registry import UserError, register
from app.training.files import write_whole
from app.training.messages import is_first_rank

# file in the folder of a run
ID = "mlflow_id"


@register("logger")
class MlFlow:
    """Sends scalars to MLflow, under the name of the run; a run that goes on is the same run there.

    Args:
        experiment: where the runs lie.
        tracking_uri: of a server or a database; null: the file `mlflow.db` of the run.

    Raises:
        UserError: its package is not installed.
    """

    def __init__(self, *, experiment: str, tracking_uri: str | None) -> None:
        if find_spec("mlflow") is None:
            raise UserError(
                "logger=mlflow: not installed; pip install mlflow, or use logger=tensorboard"
            )
        self.experiment = experiment
        self.tracking_uri = tracking_uri

    def open(self, folder: Path, step: int) -> MLFlowLogger:
        uri = self.tracking_uri or f"sqlite:///{folder.absolute()}/mlflow.db"
        path = folder / ID
        known = path.read_text(encoding="utf-8") if path.exists() else None
        logger = MLFlowLogger(self.experiment, run_name=folder.name, tracking_uri=uri, run_id=known)
        if known is None and is_first_rank():
            # a run name is not unique
            write_whole(path, str(logger.run_id))
        return logger
