"""Comma-separated values: `csv/metrics.csv` in the folder of the run, one row a point in time;
scalars only.
"""

import csv
import io
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from app.registry import UserError, register
from app.training.files import write_whole
from app.training.messages import is_first_rank


@register("logger")
class Csv:
    """Writes one table of all scalars."""

    def open(self, folder: Path, step: int) -> CSVLogger:
        logger = CSVLogger(folder, name="", version="csv")
        if is_first_rank():
            # Its property `experiment` makes a writer that deletes the file, and has no setter.
            logger._experiment = _GoesOn(logger.log_dir, step)
        return logger


class _GoesOn(ExperimentWriter):
    """Lightning's own begins by deleting the file that it finds."""

    def __init__(self, log_dir: str, step: int) -> None:
        self.step = step
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        if path.exists():
            self.metrics_keys = _cut_back(path, step)

    def _check_log_dir_exists(self) -> None:
        pass


def _is_before(row: dict[str, str], step: int) -> bool:
    """Whether a row is whole and from before a step."""
    # too many values, or too few
    if None in row or None in row.values():
        return False
    number = row.get("step", "")
    return number.isascii() and number.isdigit() and len(number) < 20 and int(number) < step


def _cut_back(path: Path, step: int) -> list[str]:
    """Drops the rows from a step on, and one that was not written to its end;
    returns the columns.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file)
        try:
            columns = list(table.fieldnames or [])
            rows = [row for row in table if _is_before(row, step)]
        except csv.Error as error:  # a field of over 128 KB
            raise UserError(f"{path}: is damaged ({error}); restore it, or delete it") from error
    if "step" not in columns:
        raise UserError(f"{path}: is damaged: it has no column `step`; restore it, or delete it")
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, kept.getvalue())
    return columns
