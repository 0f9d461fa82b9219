"""What is said of a finished run: figures on any text, a continuation, a page."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from app import evaluate, generate, report
from app.analysis.report import measure
from app.registry import UserError
from app.runs.read import read_run


@pytest.fixture
def run(train, capsys) -> Path:
    folder = train("trainer.checkpoint_every=2")
    capsys.readouterr()
    return folder


def test_a_run_is_evaluated_continued_and_reported(run: Path, text: Path, tmp_path: Path, capsys) -> None:
    summary = json.loads((run / "summary.json").read_text())
    evaluate.main([str(run), "--json"])
    own = json.loads(capsys.readouterr().out)
    assert own["nats"] == pytest.approx(summary["val_nats"], rel=0.05)  # the run validates on some of these rows

    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[:20_000])
    evaluate.main([str(run), "data=text", f"data.path={other}", f"data.cache_dir={tmp_path / 'cache'}"])
    assert "bits per byte" in capsys.readouterr().out

    ask = [str(run), "--prompt", "def main", "--tokens", "4"]
    generate.main(ask)
    first = capsys.readouterr().out
    generate.main(ask)
    assert first.startswith("def main") and first == capsys.readouterr().out

    report.main([str(run), "--rows", "2"])
    page = Path(capsys.readouterr().out.strip()).read_text()
    numbers = json.loads((run / "report" / "report.json").read_text())
    assert len(numbers["samples"][0]["experts"]) == 2
    assert len(numbers["by_domain"][0][0]) == numbers["num_experts"]
    assert "http" not in page.partition("<script id")[0]


def test_bits_per_byte_are_the_nats_of_the_text_over_its_bytes(run: Path, tmp_path: Path, capsys) -> None:
    """With a token a byte: bits per byte are nats per token over ln 2, up to the separators."""
    other = tmp_path / "other.txt"
    other.write_text("one two three " * 300)
    evaluate.main([str(run), "data=text", f"data.path={other}", f"data.cache_dir={tmp_path / 'cache'}", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["bpb"] == found["bpb_text"] == pytest.approx(found["nats"] / math.log(2), rel=0.02)


def test_the_report_shows_the_experts_of_each_token_and_the_load_of_each_domain(train, text, tmp_path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("0123456789 " * 3000)
    sources = f"data.sources={{code:{{path:{text}}},digits:{{path:{other}}}}}"
    folder = train("trainer.checkpoint_every=2", source=("data=mix", sources))
    numbers = measure(read_run(folder), rows=2)
    assert numbers["domains"] == ["code", "digits"]
    run = read_run(folder)
    load = torch.zeros(2, 2, numbers["num_experts"])  # layers, domains, experts
    with torch.no_grad():
        batches = list(run.text.held_out(2, 8))
        for number, batch in enumerate(batches):
            _, routings = run.model(batch["tokens"], batch["targets"], batch["valid"], batch["document"])
            for layer, routing in enumerate(routings):
                k = routing.top_k
                expert, gate = routing.expert.view(-1, k), routing.gate.view(-1, k)  # (T, K), a row all of one domain
                chosen = expert[batch["valid"].flatten()].flatten()
                load[layer, int(batch["domain"][0, 0])] += torch.bincount(chosen, minlength=load.size(-1))
                shown = numbers["samples"][number]["experts"][layer]
                assert len(shown) == len(numbers["samples"][number]["tokens"])
                for token, pairs in enumerate(shown):
                    best = gate[token].argsort(descending=True)
                    assert [e for e, _ in pairs] == expert[token][best].tolist()
                    assert [g for _, g in pairs] == pytest.approx(gate[token][best].tolist(), abs=1e-4)
    torch.testing.assert_close(torch.tensor(numbers["by_domain"]), load / load.mean(-1, keepdim=True))
    assert not torch.allclose(load[:, 0], load[:, 1])


def test_pictures_and_all_numbers_lie_beside_the_page(run: Path) -> None:
    report.main([str(run), "--rows", "2"])
    folder = run / "report"
    numbers = json.loads((folder / "report.json").read_text())
    assert {path.stem for path in folder.glob("*.png")} == numbers["experiments"].keys() >= {"masking", "removal"}
    with (folder / "report.csv").open(newline="") as file:
        flat = {place: float(value) for place, value in csv.reader(file) if place != "place"}
    assert flat["statistics.maxvio.1"] == numbers["statistics"]["maxvio"][1]
    assert flat["experiments.removal.rise.1.3.0"] == numbers["experiments"]["removal"]["rise"][1][3][0]
    report.main([str(run), "--rows", "2", "--quick"])
    assert json.loads((folder / "report.json").read_text())["experiments"] == {}
    assert not list(folder.glob("*.png")), "a picture of another report would be taken for one of this"


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        report.main([str(tmp_path)])


def test_a_run_without_a_checkpoint_is_one_line(run: Path) -> None:
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink()
    with pytest.raises(UserError, match="has no checkpoint"):
        report.main([str(run)])
    assert not (run / "report").exists()


def test_a_dense_model_has_no_experts_to_report(train) -> None:
    folder = train("experts=dense", "trainer.checkpoint_every=2")
    with pytest.raises(UserError, match="dense"):
        report.main([str(folder)])


@pytest.mark.browser
def test_the_token_view_switches_layers_and_shows_experts_on_hover(run: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium; apt-get install chromium")
    report.main([str(run), "--rows", "2"])
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((run / "report" / "index.html").as_uri())
        page.locator("#text span").nth(3).hover()
        assert "gate" in page.locator("#tip").inner_text()
        before = page.locator("#text").inner_html()
        page.locator("#layer").select_option("1")
        assert page.locator("#text").inner_html() != before
        assert page.get_by_role("heading", name="Without one expert").is_visible()
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 500)")
        assert not errors
        browser.close()
