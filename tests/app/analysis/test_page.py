"""The report in a real browser: marks, experts chosen by mouse and keyboard, layers, two runs;
nothing is fetched.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import report

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
Open = Callable[[Path], Any]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a page in a window, and afterwards looks for errors
    and for requests that leave the disk.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium")
    errors: list[str] = []
    asked: list[str] = []

    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )

        def open_page(path: Path) -> Any:
            page = browser.new_page(viewport={"width": 1000, "height": 700})
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri())
            return page

        yield open_page
        browser.close()
    assert not errors
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.fixture
def run(train: Callable[..., Path]) -> Path:
    return train(
        "experts=coarse", "experts.num_experts=60", "experts.top_k=2", "trainer.max_steps=4"
    )


def marks(page: Any, where: str) -> list[str]:
    look = (
        "e => [e.style.background, e.style.textDecoration, e.style.fontWeight, "
        "e.style.fontStyle].join()"
    )
    return page.evaluate(f"[...document.querySelectorAll('{where}')].map({look})")


def served(page: Any) -> list[list[int]]:
    """The experts of every token of the first text in the first layer, out of the page's data."""
    experts = (
        "JSON.parse(document.getElementById('data').textContent).runs[0].samples[0].experts[0]"
    )
    return page.evaluate(f"{experts}.map(pairs => pairs.map(pair => pair[0]))")


def test_an_expert_is_chosen_by_mouse_and_keyboard_and_marks_its_tokens_alone(
    run: Path, opened: Open
) -> None:
    report.main([str(run), "--rows", "2", "--quick"])
    page = opened(run / "report" / "index.html")
    legend = marks(page, "#legend button")
    assert len({*legend}) == 60, "sixty experts, sixty marks"
    experts = served(page)
    assert marks(page, ".text span") == [legend[own[0]] for own in experts]
    chosen = experts[3][1]
    page.locator("#legend button").nth(chosen).click()
    assert [mark == legend[chosen] for mark in marks(page, ".text span")] == [
        chosen in own for own in experts
    ]
    assert page.locator("span.marked").count() == sum(chosen in own for own in experts)
    page.keyboard.press("Enter")
    assert page.locator("span.marked").count() == len(experts), "the same key takes the choice back"


def test_what_is_known_of_a_token_is_told_inside_of_the_window(run: Path, opened: Open) -> None:
    report.main([str(run), "--rows", "2", "--quick"])
    page = opened(run / "report" / "index.html")
    spans = page.locator(".text span")
    experts = served(page)
    spans.first.focus()
    page.keyboard.press("ArrowRight")
    first, second = (f"expert {e}" for e in experts[1])
    assert (
        first in (told := page.locator("#tip").inner_text()) and second in told and "nats" in told
    )
    for place in range(len(experts)):
        spans.nth(place).hover()
        box = page.locator("#tip").bounding_box()
        assert (
            box["x"] >= 0
            and box["x"] + box["width"] <= 1000
            and box["y"] >= 0
            and box["y"] + box["height"] <= 700
        )


def test_layers_switch_and_stand_side_by_side(run: Path, opened: Open) -> None:
    report.main([str(run), "--rows", "2", "--quick"])
    page = opened(run / "report" / "index.html")
    before = marks(page, ".text span")
    page.locator("#compare").click()
    assert (
        marks(page, ".text:nth-child(1) span") == before != marks(page, ".text:nth-child(2) span")
    )
    page.locator("#layer").select_option("1")
    page.locator("#other-layer").select_option("0")
    assert (
        marks(page, ".text:nth-child(2) span") == before != marks(page, ".text:nth-child(1) span")
    )


def test_two_runs_show_where_they_disagree(
    run: Path, train: Callable[..., Path], opened: Open
) -> None:
    other = train(
        "experts=coarse", "experts.num_experts=5", "experts.top_k=2", "seed=1", name="other"
    )
    report.main([str(run), str(other), "--rows", "2"])
    page = opened(run / "report_other" / "index.html")
    mine = marks(page, ".text:nth-child(1) span")
    its = marks(page, ".text:nth-child(2) span")
    differs = [one != two for one, two in zip(mine, its, strict=True)]
    look = (
        "[...document.querySelectorAll('.text:nth-child(2) span')].map(e => "
        "e.classList.contains('differs'))"
    )
    assert page.evaluate(look) == differs and any(differs)
    assert page.locator("#count").inner_text() == f"{sum(differs)} of {len(differs)} tokens differ"
    places = []
    for _ in range(2):
        page.locator("#next").click()
        places.append(
            page.evaluate(
                "[...document.activeElement.parentNode.children].indexOf(document.activeElement)"
            )
        )
    assert places == [place for place, differ in enumerate(differs) if differ][:2]
    page.locator("#layer").select_option("1")
    assert page.locator("#next").is_hidden(), "layers of different depth have no pairs"
    assert page.get_by_role("heading", name="Without one expert").is_visible()
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 500)")


def test_the_page_has_a_dark_side(run: Path, opened: Open) -> None:
    report.main([str(run), "--rows", "2", "--quick"])
    page = opened(run / "report" / "index.html")
    shade = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(shade)
    page.emulate_media(color_scheme="dark")
    assert light == "rgb(255, 255, 255)" and page.evaluate(shade) == "rgb(22, 22, 22)"
