"""Short real runs: a nano model on the toy corpus under the composed config,
with the callbacks of one group.
"""

from pathlib import Path

import pytest

from tests.support.watched import Start, starter


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return starter(tmp_path)
