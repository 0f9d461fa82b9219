"""Callbacks that look closer at routers, weights and the shared expert,
against what is counted by hand.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from app.analysis.specialisation import expert_norms, stable_ranks
from app.model.moe import MoE
from app.training.module import LanguageModel
from callbacks.choices import Choices
from callbacks.expert_weights import ExpertWeights
from callbacks.shared_share import SharedShare
from experts.contract import Stack
from tests.support.watched import Run, Start

STILL = ("optimizer.lr=0.0", "trainer.gradient_clip_val=null")


def seen(run: Run, layer: int) -> list[tuple[Tensor, Tensor]]:
    """Logits (T, E) and real tokens (T,) of a layer on the validation batches."""
    found = []
    with torch.no_grad():
        for batch in run.trainer.datamodule.val_dataloader():
            _, routings = run.module.model.eval()(
                batch["tokens"], batch["targets"], batch["valid"], batch["document"]
            )
            found.append((routings[layer].logits, batch["valid"].flatten()))
    return found


def best(scores: np.ndarray, k: int = 2) -> list[set[int]]:
    return [{*np.argsort(-row, kind="stable")[:k].tolist()} for row in scores]


def test_choices_without_the_offset_and_in_bfloat16_are_counted_token_by_token(
    start: Start,
) -> None:
    bias = torch.linspace(0, 0.03, 8).repeat(2, 1)

    def lean(module: LanguageModel) -> None:
        module.model.balancer.terms["loss_free"].bias.copy_(bias)
        for router in (
            module.model.routers()
        ):  # what all experts share changes no choice, but leaves few digits for the rest
            router.score.proj.weight.data += torch.full((1, 1), 2.0)

    parts = (
        "experts=coarse",
        "experts.num_experts=8",
        "experts.top_k=2",
        "router=topk",
        "balance=loss_free",
    )
    run = start(
        *STILL, *parts, "balance.loss_free.rate=1e-9", callbacks=[Choices()], change=lean, steps=2
    )
    overlap = []
    flips = []
    for logits, valid in seen(run, 1):
        scores = logits.softmax(-1)
        coarse = logits.bfloat16().float().softmax(-1)
        own = best((scores + bias[1]).numpy())
        without = best(scores.numpy())
        low = best((coarse + bias[1]).numpy())
        for place in np.flatnonzero(valid):
            overlap.append(len(own[place] & without[place]) / len(own[place] | without[place]))
            flips.append(own[place] != low[place])
    assert 0.05 < np.mean(overlap) < 0.95 and 0 < np.mean(flips) < 0.9
    assert run.scalar("router_by_layer/offset_overlap/1")[-1] == pytest.approx(
        np.mean(overlap), abs=1e-3
    )
    assert run.scalar("router_by_layer/bf16_flips/1")[-1] == pytest.approx(np.mean(flips), abs=2e-3)


def test_without_a_controller_there_is_no_overlap_to_tell(start: Start) -> None:
    tags = start("balance=none", callbacks=[Choices()], steps=2).events.Tags()["scalars"]
    assert "router/bf16_flips" in tags and "router/offset_overlap" not in tags


@pytest.mark.parametrize(("silent", "share"), [("common", 0.0), ("routed", 1.0)])
def test_who_says_nothing_has_no_share(start: Start, silent: str, share: float) -> None:
    def silence(module: LanguageModel) -> None:
        for name, parameter in module.model.named_parameters():
            if f"experts.{silent}.w_out" in name:
                parameter.data.zero_()

    parts = ("experts=deepseek", "experts.num_shared=1")
    run = start(*STILL, *parts, callbacks=[SharedShare()], change=silence, steps=2)
    assert run.scalar("experts_by_layer/shared_share/1")[-1] == pytest.approx(share, abs=1e-6)


def test_the_share_of_the_shared_expert_is_that_of_the_norms(start: Start) -> None:
    run = start(
        *STILL, "experts=deepseek", "experts.num_shared=1", callbacks=[SharedShare()], steps=2
    )
    layer = [module for module in run.module.model.modules() if isinstance(module, MoE)][1]
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    valid = torch.cat([real for _, real in seen(run, 1)])
    hook.remove()
    shares = []
    with torch.no_grad():
        for x in inputs:
            shared = layer.experts.common(x)
            routed = layer(x)[0] - shared
            shares.append(
                (shared.norm(dim=-1) / (shared.norm(dim=-1) + routed.norm(dim=-1))).flatten()
            )
    expected = torch.cat(shares)[valid].mean().item()
    assert run.scalar("experts_by_layer/shared_share/1")[-1] == pytest.approx(expected, rel=1e-3)
    assert 0.1 < expected < 0.9


def test_without_a_shared_expert_nothing_is_written(start: Start) -> None:
    assert (
        "experts/shared_share"
        not in start(callbacks=[SharedShare()], steps=2).events.Tags()["scalars"]
    )


def test_stable_rank_and_norm_by_hand() -> None:
    stack = Stack(3, 2, 2)
    stack.w_out.data = torch.stack(
        (torch.diag(torch.tensor([2.0, 1.0])), torch.ones(2, 2), torch.eye(2))
    )
    assert stable_ranks(stack).tolist() == pytest.approx([5 / 4, 1, 2])
    stack.w_in.data = torch.tensor(
        [[[1.0, 2, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 3], [0, 0, 0, 1]], [[0] * 4, [0] * 4]]
    )
    assert expert_norms(stack).tolist() == pytest.approx([10**0.5, 14**0.5, 2**0.5])


def test_the_weights_of_each_layer_are_told(start: Start) -> None:
    run = start(*STILL, callbacks=[ExpertWeights(every=2)], steps=2)
    stack = run.module.model.blocks[1].ffn.experts.routed
    w_out = stack.w_out.detach().numpy()
    ranks = [(w**2).sum() / np.linalg.svd(w)[1][0] ** 2 for w in w_out]
    assert run.scalar("weights_by_layer/stable_rank/1")[-1] == pytest.approx(
        np.mean(ranks), rel=1e-4
    )
    assert run.scalar("weights_by_layer/stable_rank_min/1")[-1] == pytest.approx(
        np.min(ranks), rel=1e-4
    )
    assert "weights/expert_norm/1" in run.events.Tags()["histograms"]
