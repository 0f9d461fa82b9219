"""The experiments on a trained run: values that can be known beforehand,
through the real `train.py`.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from app.analysis.experiments import (
    experts_per_token,
    labels,
    masking,
    merging,
    number_of_experts,
    redundancy,
    removal,
    routers_certainty,
    saturation,
    skill_mixture,
    without_shared,
)
from app.analysis.experiments.observe import passes
from app.analysis.experiments.suite import BATCH, EXPERIMENTS, conducted
from app.analysis.likelihood import evaluate
from app.data.corpus import Batch
from app.runs.read import TrainedRun, read_run

Train = Callable[..., Path]
Trained = Callable[..., tuple[TrainedRun, list[Batch]]]


@pytest.fixture
def trained(train: Train, text: Path, tmp_path: Path) -> Trained:
    """A short run on code and digits, and its held-out rows."""

    def run(*overrides: str) -> tuple[TrainedRun, list[Batch]]:
        (tmp_path / "digits.txt").write_text("".join(f"{7 * n % 1009} " for n in range(9000)))
        sources = f"data.sources={{code:{{path:{text}}},digits:{{path:{tmp_path / 'digits.txt'}}}}}"
        folder = train(
            "trainer.max_steps=20", "optimizer.lr=0.02", *overrides, source=("data=mix", sources)
        )
        found = read_run(folder)
        return found, list(found.text.held_out(2, BATCH))

    return run


def nats(run: TrainedRun, batches: list[Batch]) -> float:
    return evaluate(run.model, batches, run.text.domains)["nats"]


def test_an_expert_of_one_domain_is_missed_by_that_domain_alone(trained: Trained) -> None:
    run, batches = trained(
        "router=oracle", "experts=coarse", "experts.num_experts=6", "balance=none"
    )
    found = removal.measure(run, batches)
    assert found is not None and found["domains"] == ["code", "digits"]
    assert len(found["rise"]) == len(run.model.blocks)
    for layer in found["rise"]:
        assert all(code != 0 and digits == 0 for code, digits in layer[:2])
        assert all(code == 0 and digits != 0 for code, digits in layer[2:4])
        assert layer[4:] == [[0, 0], [0, 0]], "nobody uses them"


@torch.no_grad()
def test_two_equal_experts_are_redundant_and_merge_into_one(trained: Trained) -> None:
    run, batches = trained(
        "experts=coarse",
        "experts.num_experts=4",
        "experts.top_k=2",
        "experts/activation=clamped_swiglu",
        "experts.activation.bias=true",
    )
    stack = run.model.blocks[1].ffn.experts.routed
    order = torch.randperm(stack.w_out.size(1))
    # of the gate and of what it gates
    both = torch.cat((order, order + len(order)))
    for weight in (stack.w_in, stack.b_in):
        weight.data[3] = weight.data[0][..., both]
    stack.w_out.data[3], stack.b_out.data[3] = stack.w_out.data[0][order], stack.b_out.data[0]
    exchanged = redundancy.measure(run, batches)
    merger = merging.measure(run, batches)
    assert exchanged is not None and merger is not None
    rise = exchanged["rise"][1]
    assert rise[0][3] == rise[3][0] == pytest.approx(0, abs=1e-5) and rise[0][0] is None
    assert min(abs(rise[i][j]) for i, j in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))) > 2e-5
    assert merger["pairs"][1] == (0, 3) and merger["merged"][1] == pytest.approx(0, abs=1e-5)
    assert abs(merger["merged"][0]) > 1e-4 and abs(merger["without the rarer"][1]) > 1e-4


def test_a_merger_is_a_mean_by_load_and_passes_by(trained: Trained) -> None:
    run, _ = trained("experts=coarse", "experts.num_experts=4", "trainer.max_steps=1")
    stack = run.model.blocks[0].ffn.experts.routed
    before = [weight.clone() for weight in stack.parameters()]
    with merging.merged(stack, (2, 1), torch.tensor([9.0, 30, 10, 0])):
        ordered = merging.in_order(stack, 2, 2)
        assert all(
            torch.equal(new, weight[2])
            for new, weight in zip(ordered, stack.parameters(), strict=True)
        )
        assert torch.equal(stack.w_in[1], stack.w_in[2]) and torch.equal(
            stack.w_in[0], before[0][0]
        )
        rows = {tuple(row) for row in before[1][1].mul(0.75).round(decimals=4).tolist()}
        rest = (stack.w_out[2] - 0.25 * before[1][2]).round(decimals=4)
        assert {tuple(row) for row in rest.tolist()} == rows, (
            "the hidden units of the second, in another order"
        )
    assert all(
        torch.equal(weight, old) for weight, old in zip(stack.parameters(), before, strict=True)
    )


def test_the_masks_are_sixteenths_and_leave_enough_to_choose_from(trained: Trained) -> None:
    run, batches = trained("experts=coarse", "experts.num_experts=32", "experts.top_k=2")
    found = masking.measure(run, batches)
    assert found is not None and found["masked"] == [0, 2, 4, 6, 8]
    assert found["nats"][0] == nats(run, batches) and len({*found["nats"]}) == 5


def test_a_sweep_over_k_has_the_trained_one_and_its_loss(trained: Trained) -> None:
    run, batches = trained("experts=coarse", "experts.num_experts=6", "experts.top_k=2")
    found = experts_per_token.measure(run, batches)
    assert found is not None and found["k"] == [1, 2, 3, 4] and found["trained"] == 2
    assert found["nats"][1] == nats(run, batches) and len({*found["nats"]}) == 4


def test_the_sweep_is_of_a_coarse_grid_where_many_experts_work() -> None:
    assert experts_per_token.grid(7, 64) == [1, 3, 5, 7, 9, 11, 13]
    assert experts_per_token.grid(8, 10) == [1, 3, 5, 7, 8, 9]


def test_the_shared_expert_is_missed(trained: Trained) -> None:
    run, batches = trained(
        "experts=deepseek", "experts.num_experts=4", "experts.segments=2", "experts.num_shared=1"
    )
    found = without_shared.measure(run, batches)
    assert found is not None and found["as trained"] == nats(run, batches)
    assert found["one more routed instead"] > found["as trained"]


FIXED = {"number_of_experts"}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("overrides", "lacking"),
    [
        (["router=top_p"], {"experts_per_token"}),
        (["router=switch", "experts=coarse", "experts.num_experts=2"], FIXED),
        (["router=hash", "balance=none"], FIXED),
        (["experts=heterogeneous"], {"merging", *FIXED}),
        (["router=moepp", "experts=moepp"], FIXED),
        (["router=expert_choice", "balance=none", "allow_non_causal=true"], set()),
        (["experts=coarse", "experts.top_k=8"], {"masking", *FIXED}),
        (["experts=lora_skills", "router=context"], {"masking", "merging", *FIXED}),
    ],
)
def test_a_run_is_asked_what_it_can_be_asked_and_every_number_is_one(
    trained: Trained, overrides: list[str], lacking: set[str]
) -> None:
    run, _ = trained("trainer.max_steps=2", *overrides)
    found = conducted(run, 1)
    skilled = {"skill_mixture"} if "skill_mixture" not in found else set()
    assert EXPERIMENTS.keys() - found.keys() == lacking | {"without_shared", "saturation"} | skilled
    for name, numbers in found.items():
        figure = Figure()
        EXPERIMENTS[name].draw(figure, numbers)
        assert figure.axes
        assert all(math.isfinite(value) for value in flat(numbers))


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in flat(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in flat(inner)]
    return [value] if isinstance(value, int | float) else []


def routings(run: TrainedRun, batches: list[Batch]) -> list[tuple[Batch, Any]]:
    return [(batch, layers) for batch, _, layers in passes(run, batches)]


def test_easy_and_hard_tokens_of_each_domain_take_what_the_routings_say(trained: Trained) -> None:
    run, batches = trained("router=top_p", "experts=coarse", "experts.num_experts=6")
    found = number_of_experts.measure(run, batches)
    assert found is not None and found["domains"] == ["code", "digits"]
    k: dict[tuple[int, int], list[int]] = defaultdict(list)
    pairs: list[tuple[float, float]] = []
    for batch, nll, layers in passes(run, batches):
        for place in np.flatnonzero(batch["valid"].flatten()):
            own = [int(((r.token == place) & (r.expert < 6)).sum()) for r in layers]
            pairs.append((float(nll.flatten()[place]), fmean(own)))
            for layer, number in enumerate(own):
                k[layer, int(batch["domain"].flatten()[place])].append(number)
    for layer, row in enumerate(found["by_layer"]):
        assert row == pytest.approx([fmean(k[layer, 0]), fmean(k[layer, 1])])
    hardest = np.array_split(sorted(pairs), 10)[-1]
    assert found["difficulty"][-1] == pytest.approx(hardest[:, 0].mean())
    assert found["by_difficulty"][-1] == pytest.approx(hardest[:, 1].mean())


def test_a_mixture_of_skills_is_told_by_domain_by_layer_and_by_token(trained: Trained) -> None:
    run, batches = trained(
        "experts=lora_skills", "experts.skills=[a,b,c]", "router=mixtral", "experts.top_k=2"
    )
    found = skill_mixture.measure(run, batches)
    assert found is not None and (found["skills"], found["domains"]) == (
        ["a", "b", "c"],
        ["code", "digits"],
    )
    of: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for batch, _, layers in passes(run, batches):
        for place in np.flatnonzero(batch["valid"].flatten()):
            for layer, routing in enumerate(layers):
                gate = dict.fromkeys(range(3), 0.0)
                gate |= {
                    int(e): float(g)
                    for t, e, g in zip(*routing[:3], strict=True)
                    if t == place and e < 3
                }
                for skill, share in gate.items():
                    of[int(batch["domain"].flatten()[place]), layer, skill].append(share)
    for (domain, layer, skill), shares in of.items():
        assert found["mean"][domain][layer][skill] == pytest.approx(fmean(shares), abs=1e-6)
        assert found["spread"][domain][layer][skill] == pytest.approx(np.std(shares), abs=1e-6)
    first = [
        fmean(of[1, layer, 2][place] for layer in range(len(found["mean"][1])))
        for place in range(5)
    ]
    assert [token[2] for token in found["tokens"][1]][:5] == pytest.approx(first, abs=1e-6)
    assert not np.allclose(found["mean"][0], found["mean"][1], atol=1e-3)


def test_certainty_is_that_of_the_probabilities(trained: Trained) -> None:
    run, batches = trained("experts=coarse", "experts.num_experts=6", "experts.top_k=3")
    found = routers_certainty.measure(run, batches)
    assert found is not None
    share = np.concatenate(
        [layers[1].probabilities.numpy() for _, layers in routings(run, batches)]
    ).astype(float)
    best = -np.sort(-share, 1)
    assert found["entropy"][1] == pytest.approx(-(share * np.log(share)).sum(1).mean(), rel=1e-5)
    assert found["inner_balance"][1] == pytest.approx(np.median(best[:, 0] / best[:, 1]), rel=1e-2)
    assert found["outer_balance"][1] == pytest.approx(np.median(best[:, :3].sum(1)), rel=1e-2)
    first = [
        np.concatenate([layers[i].probabilities.argmax(1) for _, layers in routings(run, batches)])
        for i in (0, 1)
    ]
    joint = np.histogram2d(*first, bins=6)[0] / len(first[0])
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    mutual = (joint[joint > 0] * np.log(joint[joint > 0] / independent[joint > 0])).sum()
    assert found["information"][0][1] == found["information"][1][0] == pytest.approx(mutual)
    assert found["information"][0][0] is None


def test_saturation_is_the_share_of_the_final_choices(trained: Trained) -> None:
    run, batches = trained(
        "experts=coarse", "trainer.checkpoint_every=10", "trainer.keep_checkpoints=2"
    )
    found = saturation.measure(run, batches)
    assert found is not None and found["steps"] == [10]
    before = read_run(run.folder / "checkpoints/step_10.ckpt")
    same = 0
    number = 0
    for (_, then), (_, now) in zip(routings(before, batches), routings(run, batches), strict=True):
        had = {*zip(then[0].token.tolist(), then[0].expert.tolist(), strict=True)}
        has = {*zip(now[0].token.tolist(), now[0].expert.tolist(), strict=True)}
        same = same + len(had & has)
        number = number + len(has)
    assert found["saturation"][0][0] == pytest.approx(same / number) and 0.3 < same / number < 1
    newest = run.folder / "checkpoints/step_10.ckpt"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert saturation.measure(run, batches) is None


def test_experts_that_read_domains_specialise_on_domains(trained: Trained) -> None:
    run, batches = trained(
        "router=oracle", "experts=coarse", "experts.num_experts=6", "balance=none"
    )
    found = labels.measure(run, batches)
    assert found["shares"]["domain"] == [1, 1] and found["chance"]["domain"][0] < 0.7
    assert found["shares"]["word read"] > found["chance"]["word read"], (
        "digits are read in one domain, letters in one"
    )


def test_the_favourite_expert_of_a_label_is_counted() -> None:
    # (1, T, E)
    have = torch.tensor(
        [[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1], [1, 0]], dtype=torch.float64
    )[None]
    label = torch.tensor([0, 0, 0, 4, 4, 4, -1])
    assert labels.favourite(have, label).tolist() == pytest.approx([5 / 6]), (
        "2 of the 3 zeros, and all fours"
    )
    rare = torch.cat((label.repeat(8), torch.tensor([7])))
    more = torch.cat((have.repeat(1, 8, 1), torch.tensor([[[0.0, 1]]], dtype=torch.float64)), 1)
    assert labels.favourite(more, rare).tolist() == pytest.approx([5 / 6]), "one token says nothing"
