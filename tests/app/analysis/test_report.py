"""What is said of a finished run: figures on any text, a continuation, a page."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from app import evaluate, generate, report
from app.analysis.page import write_report
from app.analysis.report import measure
from app.registry import UserError
from app.runs.read import read_run


@pytest.fixture
def run(train, capsys) -> Path:
    folder = train("trainer.checkpoint_every=2")
    capsys.readouterr()
    return folder


def test_a_run_is_evaluated_continued_and_reported(
    run: Path, text: Path, tmp_path: Path, capsys
) -> None:
    summary = json.loads((run / "summary.json").read_text())
    evaluate.main([str(run), "--json"])
    own = json.loads(capsys.readouterr().out)
    # the run validates on some of these rows
    assert own["nats"] == pytest.approx(summary["val_nats"], rel=0.05)

    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[:20_000])
    evaluate.main(
        [str(run), "data=text", f"data.path={other}", f"data.cache_dir={tmp_path / 'cache'}"]
    )
    assert "bits per byte" in capsys.readouterr().out

    ask = [str(run), "--prompt", "def main", "--max-tokens", "4"]
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


def test_bits_per_byte_are_the_nats_of_the_text_over_its_bytes(
    run: Path, tmp_path: Path, capsys
) -> None:
    """With a token a byte: bits per byte are nats per token over ln 2, up to the separators."""
    other = tmp_path / "other.txt"
    other.write_text("one two three " * 300)
    evaluate.main(
        [
            str(run),
            "data=text",
            f"data.path={other}",
            f"data.cache_dir={tmp_path / 'cache'}",
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["bpb"] == found["bpb_text"] == pytest.approx(found["nats"] / math.log(2), rel=0.02)


def test_the_report_shows_the_experts_of_each_token_and_the_load_of_each_domain(
    train, text, tmp_path
) -> None:
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
            _, routings = run.model(
                batch["tokens"], batch["targets"], batch["valid"], batch["document"]
            )
            for layer, routing in enumerate(routings):
                k = routing.top_k
                # (T, K), a row all of one domain
                expert = routing.expert.view(-1, k)
                gate = routing.gate.view(-1, k)
                chosen = expert[batch["valid"].flatten()].flatten()
                load[layer, int(batch["domain"][0, 0])] += torch.bincount(
                    chosen, minlength=load.size(-1)
                )
                shown = numbers["samples"][number]["experts"][layer]
                assert len(shown) == len(numbers["samples"][number]["tokens"])
                for token, pairs in enumerate(shown):
                    best = gate[token].argsort(descending=True)
                    assert [e for e, _ in pairs] == expert[token][best].tolist()
                    assert [g for _, g in pairs] == pytest.approx(
                        gate[token][best].tolist(), abs=1e-4
                    )
    torch.testing.assert_close(
        torch.tensor(numbers["by_domain"]), load / load.mean(-1, keepdim=True)
    )
    assert not torch.allclose(load[:, 0], load[:, 1])


def test_pictures_and_all_numbers_lie_beside_the_page(run: Path) -> None:
    report.main([str(run), "--rows", "2"])
    folder = run / "report"
    numbers = json.loads((folder / "report.json").read_text())
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {"curves", *numbers["experiments"]} >= {"masking", "removal"}
    with (folder / "report.csv").open(newline="") as file:
        flat = {place: float(value) for place, value in csv.reader(file) if place != "place"}
    assert flat["statistics.maxvio.1"] == numbers["statistics"]["maxvio"][1]
    assert (
        flat["experiments.removal.rise.1.3.0"] == numbers["experiments"]["removal"]["rise"][1][3][0]
    )
    report.main([str(run), "--rows", "2", "--quick"])
    assert json.loads((folder / "report.json").read_text())["experiments"] == {}
    assert [path.stem for path in folder.glob("*.png")] == ["curves"], (
        "no picture of another report"
    )


def test_the_page_says_which_rows_its_numbers_are_of(run: Path) -> None:
    trained = read_run(run)
    available = int((trained.text.rows["domain"][:, 0] == 0).sum())
    whole, part = (measure(trained, rows, experiments=False) for rows in (available, 1))
    assert f"all {available} validation rows per domain" in whole["about"]
    assert (
        f"1 of the {available} validation rows" in part["about"]
        and (f"--rows {available} uses all") in part["about"]
    )
    summary = json.loads((run / "summary.json").read_text())
    assert whole["values"]["bpb"] == pytest.approx(summary["val_bpb"], rel=1e-4), (
        "so the loss is that of the run"
    )


def test_no_text_ends_the_script_of_the_page(run: Path, tmp_path: Path) -> None:
    numbers = measure(read_run(run), rows=1, experiments=False)
    numbers["samples"][0]["tokens"][:3] = ["<!--<script>", "</script>", "<b>"]
    assert (
        data_of(write_report(tmp_path / "report", [numbers]))["runs"][0]["samples"][0]["tokens"][2]
        == "<b>"
    )


def data_of(page: Path) -> dict[str, Any]:
    """What the script of a page reads."""
    data = page.read_text().partition('type="application/json">')[2].partition("</script>")[0]
    assert "<" not in data
    return json.loads(data)


def test_two_runs_stand_side_by_side(run: Path, train, capsys) -> None:
    other = train(
        "seed=3", "experts=coarse", "experts.num_experts=5", "trainer.max_steps=3", name="other"
    )
    capsys.readouterr()
    report.main([str(run), str(other), "--rows", "2"])
    folder = run / "report_other"
    assert (
        capsys.readouterr().out.strip() == str(folder / "index.html")
        and not (run / "report").exists()
    )
    both = json.loads((folder / "report.json").read_text())
    assert [each["run"] for each in both] == [str(run), str(other)]
    with (folder / "report.csv").open(newline="") as file:
        lines = {line[0]: line[1:] for line in csv.reader(file)}
    assert lines["place"] == [str(run), str(other)]
    assert [float(value) for value in lines["values.nats"]] == [
        each["values"]["nats"] for each in both
    ]
    assert lines["experiments.removal.rise.0.6.0"][1] == "", "the other has five experts"
    assert (
        both[1]["curves"]["Loss/val_bpb"][-1][0] == 3
        and both[1]["config"].count("num_experts: 5") == 1
    )
    assert (
        both[0]["budget"]["total_params"]
        == json.loads((run / "summary.json").read_text())["total_params"]
    )
    shown = data_of(folder / "index.html")
    assert [len([e for e in layer if e is not None]) for layer in shown["pairs"]] == [5, 5]
    images = {image for each in shown["experiments"] for image in each["images"] if image}
    assert len(images) > 6 and {path.name for path in folder.glob("removal*")} == {
        "removal_1.png",
        "removal_2.png",
    }


def test_runs_on_other_text_are_compared_in_their_numbers_alone(
    run: Path, train, tmp_path: Path
) -> None:
    (tmp_path / "digits.txt").write_text("".join(f"{7 * n % 1009} " for n in range(9000)))
    other = train(name="other", source=("data=text", f"data.path={tmp_path / 'digits.txt'}"))
    report.main([str(run), str(other), "--rows", "2", "--quick"])
    assert data_of(run / "report_other" / "index.html")["pairs"] is None


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
