"""oracle: a domain has its own experts."""

import pytest
import torch

from app.registry import UserError
from routers.score.oracle import Oracle
from tests.support.scoring import SIZES, array, context, tokens


def test_every_domain_has_experts_of_its_own_in_a_circle() -> None:
    domain = torch.tensor([0, 1, 2, 1])
    logits = Oracle(SIZES, size=None, learned=False)(tokens(4), context(4, domain=domain)).logits
    allowed = [[0, 1], [2, 3], [4, 0], [2, 3]]  # 2 of 5 experts each
    assert [row.isfinite().nonzero().flatten().tolist() for row in logits] == [
        sorted(row) for row in allowed
    ]
    assert logits[logits.isfinite()].eq(0).all()


def test_a_learned_oracle_scores_the_experts_of_the_domain_linearly() -> None:
    score = Oracle(SIZES, size=3, learned=True)
    x = tokens(4)
    logits = score(x, context(4, domain=torch.zeros(4, dtype=torch.int64))).logits
    torch.testing.assert_close(
        logits[:, :3], torch.from_numpy(array(x) @ array(score.proj.weight).T)[:, :3].float()
    )
    assert logits[:, 3:].eq(-torch.inf).all()


def test_a_text_without_a_domain_is_refused() -> None:
    with pytest.raises(UserError, match="oracle: reads the domain"):
        Oracle(SIZES, size=None, learned=False)(tokens(4), context(4, domain=None))
