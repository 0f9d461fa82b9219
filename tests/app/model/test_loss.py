"""The fused cross entropy equals torch's, in value and gradient."""

import pytest
import torch
from torch.nn import functional

from app.model.loss import ROWS, token_nll


@pytest.mark.parametrize("rows", [1, 5, ROWS + 3])
def test_it_equals_the_definition_with_ignored_targets(rows: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, rows, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (1, rows))
    targets[0, ::3] = -100
    # another weight for every token
    scale = torch.rand(1, rows, dtype=torch.float64)
    ours = token_nll(hidden, weight, targets)
    theirs = functional.cross_entropy(
        (hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none"
    )
    torch.testing.assert_close(ours.flatten(), theirs.float(), check_dtype=False)
    got = torch.autograd.grad((ours * scale).sum(), (hidden, weight))
    want = torch.autograd.grad((theirs * scale.flatten()).sum(), (hidden, weight))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
