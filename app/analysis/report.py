"""The report of a run: held-out text coloured by expert, experiments, statistics by layer and domain, likelihood."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.analysis.continuation import continued
from app.analysis.experiments.suite import EXPERIMENTS, conducted, picture
from app.analysis.specialisation import gates, load_by_label
from app.data.corpus import Batch
from app.data.tokenizers import Tokenizer
from app.runs.read import TrainedRun
from app.training.metrics import LanguageMetric, Total, routing_statistics, routing_sums, uniform_multiple
from routers.contract import Routing

PAGE = Path(__file__).with_suffix(".html")
TOP = 3.0  # multiple of 1/E that has the darkest colour
SHOWN = 8  # experts of a token, at most
BEFORE = 8  # tokens that decide how the next one is written
ROWS = 8  # of a forward pass
FEW = 4  # rows of every domain that experiments read, at most: they read them many times


@torch.no_grad()
def measure(run: TrainedRun, rows: int, experiments: bool = True) -> dict[str, Any]:
    """Everything on the page, of `rows` held-out rows of every domain, of those that its validations read."""
    text, total = run.text, Total()
    samples: dict[str, dict[str, Any]] = {}
    domains = text.domains
    metric = LanguageMetric(domains)
    for batch in text.held_out(rows, ROWS):
        inputs = (batch["tokens"], batch["targets"], batch["valid"], batch["document"])
        nll, routings = run.model(*inputs, domain=batch["domain"])
        metric.update(nll, batch["targets"], batch["nbytes"], batch["domain"])
        by_domain = [load_by_label(routing, batch["domain"], len(domains)) for routing in routings]
        total.add(routing_sums(routings) | {"by_domain": torch.stack(by_domain)})
        name = domains[int(batch["domain"][0, 0])]
        samples.setdefault(name, _sample(name, batch, routings, text.tokenizer))
    sums = total.take()
    return {
        "run": str(run.folder),
        "about": f"{run.checkpoint.name}, {int(sums['tokens']):,} tokens of held-out text.",
        "top": TOP,
        "num_experts": run.model.num_experts,
        "domains": domains,
        "samples": list(samples.values()),
        "statistics": {name: value.tolist() for name, value in routing_statistics(sums).items()},
        "by_domain": uniform_multiple(sums["by_domain"]).tolist(),
        "values": {name: value.item() for name, value in metric.compute().items()},
        "experiments": conducted(run, min(rows, FEW)) if experiments else {},
    }


def _sample(name: str, batch: Batch, routings: list[Routing], tokenizer: Tokenizer) -> dict[str, Any]:
    """The first row of a batch: its tokens as text, and for each layer and token its experts by falling gate."""
    length = int(batch["valid"][0].sum())
    tokens = batch["tokens"][0, :length].tolist()
    return {
        "name": name,
        "tokens": [_spelled(tokenizer, tokens, place) for place in range(length)],
        "experts": [_experts(gates(routing)[:length]) for routing in routings],
    }


def _spelled(tokenizer: Tokenizer, tokens: list[int], place: int) -> str:
    """A token as it reads after those before it; ¶ for what is no text."""
    return continued(tokenizer, tokens[max(0, place - BEFORE) : place], tokens[place : place + 1]) or "¶"


def _experts(gate: Tensor) -> list[list[tuple[int, float]]]:
    best = gate.topk(min(SHOWN, gate.size(1)), -1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(e, round(g, 4)) for e, g in zip(*pair, strict=True) if g > 0] for pair in pairs]


def write_report(folder: Path, numbers: dict[str, Any]) -> Path:
    """Writes page, pictures and numbers into a folder; returns the page."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    images = {name: picture(name, found) for name, found in numbers["experiments"].items()}
    for name, image in images.items():
        (folder / f"{name}.png").write_bytes(image)
    (folder / "report.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    (folder / "report.csv").write_text(_comma_separated(numbers), encoding="utf-8")
    shown = numbers | {"experiments": [_shown(name, image) for name, image in images.items()]}
    text = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
    page = PAGE.read_text(encoding="utf-8").replace("DATA", text, 1)
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def _shown(name: str, image: bytes) -> dict[str, str]:
    """What stands on the page of an experiment."""
    experiment, encoded = EXPERIMENTS[name], base64.b64encode(image).decode()
    return {"title": experiment.TITLE, "reading": experiment.READING, "image": f"data:image/png;base64,{encoded}"}


def _comma_separated(numbers: dict[str, Any]) -> str:
    """A line for each number but those of single tokens: its place in report.json, and itself."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("place", "value"))
    writer.writerows(_flat({name: value for name, value in numbers.items() if name != "samples"}))
    return out.getvalue()


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, each in inner:
            yield from _flat(each, f"{place}.{name}".removeprefix("."))
    elif isinstance(value, int | float):
        yield place, value
