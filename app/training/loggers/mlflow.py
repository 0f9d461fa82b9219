"""MLflow, by Lightning's MLFlowLogger; `pip install mlflow` first."""

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import MLFlowLogger

from app.registry import UserError, register


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
            raise UserError("logger=mlflow: not installed; pip install mlflow, or use logger=tensorboard")
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def open(self, folder: Path, step: int) -> MLFlowLogger:
        uri = self.tracking_uri or f"sqlite:///{folder.absolute()}/mlflow.db"
        known = self._known(uri, folder.name) if step else None
        return MLFlowLogger(self.experiment, run_name=folder.name, tracking_uri=uri, run_id=known)

    def _known(self, uri: str, name: str) -> str | None:
        """The run of this name, which has begun already."""
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(self.experiment)
        found = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{name}'") if experiment else []
        return str(found[0].info.run_id) if found else None
