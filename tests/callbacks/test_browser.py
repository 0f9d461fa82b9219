"""TensorBoard in a real browser, on a short real run: does a person find the experts?"""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.conftest import starter
from tests.callbacks.test_brief import OFTEN
from tests.conftest import free_port

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
IMAGES = """() => { const found = []; const walk = node => { for (const e of node.querySelectorAll('*')) {
    if (e.tagName === 'IMG' && e.complete && e.naturalWidth > 0) found.push(e.src);
    if (e.shadowRoot) walk(e.shadowRoot); } }; walk(document); return found.length; }"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    folder = starter(tmp_path_factory.mktemp("browser"))("callbacks=brief", *OFTEN).folder
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _when_up(f"http://localhost:{port}")
    finally:
        server.terminate()
        server.wait()


def _when_up(address: str) -> str:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/data/plugins_listing", timeout=5)
            return address
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(address)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser.new_page(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.mark.parametrize(("tab", "texts"), [
    ("custom_scalars", ["1 Language model", "2 Even load", "3 Routers", "4 Speed", "5 Layer by layer"]),
    ("images", ["experts/load", "specialisation/experts_by_domain"]),
    ("histograms", ["experts/load/0"]),
    ("hparams", ["val/bpb", "experts/maxvio", "router.score.name"]),
    ("text", ["samples/continuation", "The history of"]),
])  # fmt: skip
def test_a_tab_shows_what_was_written(page: Any, address: str, tab: str, texts: list[str]) -> None:
    page.goto("about:blank")
    page.goto(f"{address}/#{tab}")
    for text in texts:
        page.get_by_text(text).first.wait_for(state="attached", timeout=30_000)
    page.screenshot(path=f"/tmp/tensorboard-{tab}.png")
    if tab == "images":
        page.wait_for_function(f"({IMAGES})() > 0", timeout=30_000)
