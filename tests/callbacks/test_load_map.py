"""What is told of the experts at the end of a run."""

import pytest
import torch

from callbacks.load_map import LoadMap, lines
from tests.support.watched import Start


def test_the_map_has_a_shade_for_each_load_and_marks_the_dead() -> None:
    # (L, domains, E), 20 where even
    load = torch.tensor([[[0.0, 10, 20, 40, 10, 1, 60, 19]], [[20.0] * 8]])
    head, first, second, balance, dead = lines(load)
    assert first == "layer 0  x░▒█░░█▒" and second == "layer 1  ▒▒▒▒▒▒▒▒"
    assert balance.startswith(
        "load: uneven. The busiest expert, number 6 of layer 0, has 3.00 times the even load; "
    )
    assert balance.endswith("MaxVio is 1.00 on average")
    assert dead == "dead: 1 of 16 experts got no token (layer 0: 1)"
    assert "x no token" in head


def test_only_an_expert_without_any_token_has_the_mark_of_none() -> None:
    load = torch.full((1, 1, 100), 1000.0)
    load[0, 0, 0], load[0, 0, 1] = 1, 0
    assert lines(load)[1] == "layer 0  ░x" + 98 * "▒"


def test_experts_of_one_domain_each_tell_all_of_it() -> None:
    *_, specialisation, dead = lines(torch.tensor([[[5.0, 0], [0, 5]]]))
    assert specialisation == (
        "specialisation: the choice of experts tells 100% of the domain (0.69 of 0.69 nats)"
    )
    assert dead == "dead: none of 2"
    *_, specialisation, _ = lines(torch.tensor([[[5.0, 5], [5, 5]]]))
    assert "tells 0% of the domain" in specialisation


def test_a_run_ends_with_its_load_map(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = ("experts=coarse", "experts.num_experts=8", "experts.top_k=2")
    run = start("router=oracle", "balance=none", *coarse, callbacks=[LoadMap()])
    said = capsys.readouterr().err.splitlines()
    assert [line[:7] for line in said] == [
        "experts",
        "layer 0",
        "layer 1",
        "load: u",
        "special",
        "dead: 4",
    ]
    assert "100% of the domain" in said[4]
    load = run.module.validation["load"]
    assert "".join("x" if value == 0 else "." for value in load[0]) == "".join(
        "x" if letter == "x" else "." for letter in said[1].split("  ")[1]
    )


def test_a_dense_model_has_no_map(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start("experts=dense", "balance=none", callbacks=[LoadMap()])
    assert "layer" not in capsys.readouterr().err
