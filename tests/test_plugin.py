"""A new router is one class and one YAML in a package of its own;
nothing in this repository is edited.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NANO, ROOT

pytestmark = pytest.mark.nightly


def test_an_installed_package_adds_a_router(text: Path, tmp_path: Path) -> None:
    source = shutil.copytree(ROOT / "tests/fixtures/bounded_router", tmp_path / "source")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(site), str(source)], check=True, capture_output=True, timeout=120)
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "router/score=bounded",
        "router.score.limit=1.5",
        "data=text",
    ]
    done = subprocess.run(
        [*command, f"data.path={text}", *NANO, "run=plugin"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/plugin/config.yaml").read_text().count("limit: 1.5") == 1
    assert json.loads((tmp_path / "runs/plugin/summary.json").read_text())["val_bpb"] > 0
    done = subprocess.run(
        [sys.executable, "-m", "app.export", "runs/plugin", "--to", "hf-remote"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: router/score=bounded: is of the package bounded_router, whose code"
    )
    assert not (tmp_path / "runs/plugin/hf-remote").exists()


def test_help_answers_before_torch_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "*topk" in done.stdout and "_base" not in done.stdout
    assert "python train.py router=topk experts=deepseek" in done.stdout
    assert "| torch" not in done.stderr.replace(" ", "").replace("|", "| ")
