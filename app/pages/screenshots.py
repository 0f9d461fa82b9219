"""The README's views of a run: `python -m app.pages.screenshots runs/NAME`, once `app.report` has
written its page.

Writes `docs/report.png` (two layers of the token view) and `docs/tensorboard.png` (the Custom
Scalars tab), as chromium shows them; needs playwright and /usr/bin/chromium.
"""

import argparse
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from app.pages.markers import ROOT

CHROMIUM = "/usr/bin/chromium"
PORT = 6016
WINDOW = {"width": 1200, "height": 620}


def main() -> None:
    """Looks at one finished run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run.resolve()
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=flags).new_page(viewport=WINDOW)  # type: ignore[arg-type]
        report(page, run)
        tensorboard(page, run)


def report(page: Any, run: Path) -> None:
    """Two layers beside each other."""
    page.goto((run / "report/index.html").as_uri())
    page.locator("#compare").click()
    page.locator("#other-layer").select_option(index=3)
    page.screenshot(path=ROOT / "docs/report.png")


def tensorboard(page: Any, run: Path) -> None:
    """The charts in the order of the questions."""
    # the name is shown, not where it lies
    words = ["--logdir", run.name, "--port", str(PORT), "--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", *words]
    server = subprocess.Popen(command, cwd=run.parent, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://localhost:{PORT}/data/plugins_listing")
        page.goto(f"http://localhost:{PORT}/#custom_scalars")
        page.get_by_text("loss, nats per token").first.wait_for(timeout=60_000)
        page.wait_for_timeout(3000)  # the lines are drawn
        page.screenshot(path=ROOT / "docs/tensorboard.png")
    finally:
        server.terminate()


def wait_for(address: str) -> None:
    """Until a server answers."""
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


if __name__ == "__main__":
    main()
