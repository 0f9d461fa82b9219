"""The one line of a mistake that `train.py` ends with."""

from collections.abc import Callable
from pathlib import Path

import pytest

Train = Callable[..., Path]


def mistake(train: Train, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What train.py prints about a mistake, having checked that it is one line and exits with 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train(*overrides)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert end.value.code == 2
    assert len(lines) == 1
    return lines[0]
