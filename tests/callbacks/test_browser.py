"""TensorBoard in a real browser, on a short real run: does a person find the experts?"""

import io
import subprocess
import sys
import time
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.ndimage import label

from tests.conftest import free_port
from tests.support.watched import OFTEN, collapse, starter

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
IMAGES = """() => {
    const found = [];
    const walk = node => {
        for (const e of node.querySelectorAll('*')) {
            if (e.tagName === 'IMG' && e.complete && e.naturalWidth > 0) found.push(e.src);
            if (e.shadowRoot) walk(e.shadowRoot);
        }
    };
    walk(document);
    return found;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    folder = starter(tmp_path_factory.mktemp("browser"))(
        "callbacks=brief", *OFTEN, change=collapse
    ).folder
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        str(port),
    ]
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


@pytest.mark.parametrize(
    ("tab", "texts"),
    [
        (
            "custom_scalars",
            ["1 Language model", "2 Even load", "3 Routers", "4 Speed", "5 Layer by layer"],
        ),
        ("images", ["experts/load", "specialisation/experts_by_domain"]),
        ("histograms", ["experts/load/0"]),
        ("hparams", ["Loss/val_bpb", "experts/maxvio", "router.score.name"]),
        ("text", ["samples/continuation", "The history of"]),
    ],
)
def test_a_tab_shows_what_was_written(page: Any, address: str, tab: str, texts: list[str]) -> None:
    page.goto("about:blank")
    page.goto(f"{address}/#{tab}")
    for text in texts:
        page.get_by_text(text).first.wait_for(state="attached", timeout=30_000)
    page.screenshot(path=f"/tmp/tensorboard-{tab}.png")


def test_it_opens_with_the_loss_and_the_bits_per_byte(page: Any, address: str) -> None:
    page.goto("about:blank")
    page.goto(address)
    page.locator("card-view .tag").first.wait_for(timeout=30_000)
    assert page.locator(".group-title-wrapper").first.inner_text().startswith("Loss")
    first = [
        card.inner_text().replace("\n", "") for card in page.locator("card-view .tag").all()[:2]
    ]
    assert first == ["Loss/train", "Loss/val_bpb"]


def test_the_map_of_the_load_has_the_colours_of_the_load(page: Any, address: str) -> None:
    """Every token has the first four of eight experts, twice the even load each;
    the others are dead.
    """
    page.goto("about:blank")
    page.goto(f"{address}/#images")
    key = urlsafe_b64encode(b'["","tb","experts/load",3,2]').decode().rstrip("=")
    shown = page.wait_for_function(
        f"() => ({IMAGES})().find(src => src.includes('{key}'))", timeout=30_000
    )
    picture = imread(io.BytesIO(urllib.request.urlopen(shown.json_value()).read()))[..., :3]
    red, _, blue = np.moveaxis(picture, -1, 0)
    cold, warm = (
        _first_band((most - least > 0.25).mean(0) > 0.3)
        for most, least in ((blue, red), (red, blue))
    )
    assert warm[-1] < cold[0], "the dead are blue, and stand to the right"
    assert len(warm) == pytest.approx(len(cold), abs=4), "four experts each"
    rows = _first_band((blue - red > 0.25)[:, cold].mean(1) > 0.3)
    black = (picture < 0.3).all(-1)[rows[4:-4]]
    assert [label(black[:, side[4:-4]], np.ones((3, 3)))[1] for side in (warm, cold)] == [0, 8], (
        "dead: a cross each"
    )


def _first_band(columns: Any) -> Any:
    """The first run of columns that are true."""
    places = np.nonzero(columns)[0]
    return np.split(places, np.nonzero(np.diff(places) > 1)[0] + 1)[0]
