"""What the table of claims says of results that are known beforehand."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.pages import claims
from app.races.race import read_race
from tests.support.studies import VALUES

NOISE = (0.0, 0.001, -0.001)


def line(name: str, seed: int, bpb: float, mean_k: float) -> dict[str, Any]:
    about = {"contestant": name, "size": "xs", "seed": seed, "share": 1.0, "lr": 0.01}
    return about | {"bpb": bpb + NOISE[seed] * (name == "fine"), "routing": {"mean_k": mean_k}}


@pytest.mark.parametrize(
    ("bpb", "mean_k", "more", "said"),
    [
        (2.3, 1.5, {"fewer_experts": True}, "| -0.100 ± 0.002 | 3 | supported |"),
        (2.3, 4.4, {"fewer_experts": True}, "contradicted: better, with 2.4 experts more |"),
        (2.3, 4.4, {}, "supported |"),
        (2.5, 1.5, {}, "contradicted: worse |"),
        (2.4, 1.5, {}, "contradicted: equivalent |"),
        (2.4, 1.5, {"below_margin": True}, "level within the margin |"),
    ],
)
def test_a_claim_is_held_against_the_difference_and_the_experts_that_it_took(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bpb: float,
    mean_k: float,
    more: dict[str, Any],
    said: str,
) -> None:
    claim = {
        "paper": "A",
        "where": "b",
        "claim": "c",
        "race": "mine",
        "one": "fine",
        "other": "top2",
    }
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([claim | {"expected": "better"} | more]))
    race = read_race(VALUES | {"seeds": [0, 1, 2], "noise_seeds": [], "margin": 0.01})
    lines = [
        line(*each)
        for s in race.seeds
        for each in (("fine", s, bpb, mean_k), ("top2", s, 2.4, 2.0))
    ]
    monkeypatch.setattr(claims, "CLAIMS", tmp_path / "claims.yaml")
    monkeypatch.setattr(claims, "folders", lambda: [Path("mine")])
    monkeypatch.setattr(claims, "read", lambda folder: (race, lines))
    assert claims.markdown().splitlines()[-1].endswith(said)
