"""A key that does not exist ends in one line that names the one that was meant."""

import pytest
from hydra.errors import HydraException

from app.config.compose import composed
from app.config.errors import one_line
from app.registry import UserError

HINTS = {
    "lr=0.1": "lr: unknown; did you mean 'optimizer.lr'?",
    "+lr=0.1": "lr: unknown; did you mean 'optimizer.lr'?",
    "max_steps=5": "max_steps: unknown; did you mean 'trainer.max_steps'?",
    "data.path=x": "data.path: the chosen data has no such key; set data=enwik8 or data=text, too",
    "router.k=3": "router.k: unknown; did you mean 'router.select.k'?",
    "router.select.p=0.3": "router.select.p: the chosen router/select has no such key; set "
    "router/select=top_p, too",
    "trainer.accumulate_grad_batches=4": "did you mean 'data.micro_batch_size'? (rows of one "
    "forward pass; ",
    "optimizer.learning_rate=1": "optimizer.learning_rate: unknown; did you mean 'optimizer.lr'?",
    "experts.topk=1": "experts.topk: unknown; did you mean 'top_k'? (one of: ",
    "experts.num_experts_per_tok=2": "experts.num_experts_per_tok: unknown; did you mean "
    "'experts.top_k'?",
    "model.d_model=2": "model.d_model: unknown; did you mean 'model.dim'?",
    "data.nam=x": "data.nam: unknown (one of: batch_size, ",
    "quux=1": "quux: unknown (one of: allow_non_causal, ",
}


@pytest.mark.parametrize("override", HINTS)
def test_the_hint_names_the_key_that_was_meant(override: str) -> None:
    with pytest.raises((HydraException, UserError)) as caught:
        composed([override])
    line = one_line(caught.value)
    assert HINTS[override] in line
    assert "\n" not in line


@pytest.mark.parametrize("layout", ["fine_grained", "deepseek"])
def test_the_range_of_top_k_says_which_experts_it_counts(layout: str) -> None:
    from app.cost.budget import on_meta

    with pytest.raises(
        UserError,
        match=r"must be in 1\.\.4, num_experts: .* segments=2, so "
        r"there are 8 experts",
    ):
        on_meta(
            composed(
                [
                    f"experts={layout}",
                    "experts.num_experts=4",
                    "experts.segments=2",
                    "experts.top_k=5",
                ]
            )
        )
