"""Every router with every layout: exported with equal logits,
or refused in one line that names the part.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.hub.facts import facts_of
from app.model.assemble import build_model
from app.pages.exports import choices, pairs, table
from app.registry import UserError
from tests.support.hub_models import VOCAB, written

pytestmark = pytest.mark.nightly

transformers = pytest.importorskip("transformers", minversion="5.0")


@torch.no_grad()
@pytest.mark.parametrize("router", choices("router"))
def test_a_router_goes_out_with_equal_logits_or_is_refused_by_name(
    router: str, tmp_path: Path
) -> None:
    tokens = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    for layout, config in [(layout, config) for name, layout, config in pairs() if name == router]:
        torch.manual_seed(0)
        try:
            model = build_model(config, VOCAB).eval()
        except UserError:
            # these two cannot go together
            continue
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        expected = table()[router][layout][0]
        try:
            architecture = written(tmp_path / layout, config, model)
        except UserError as refusal:
            assert not expected and "\n" not in str(refusal)
            assert any(
                f"{key}={value}" in str(refusal) for key, value in facts_of(config, model).items()
            )
            continue
        assert architecture.name == expected
        theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / layout, dtype=torch.float32
        ).eval()
        torch.testing.assert_close(
            theirs(tokens).logits, model.logits(tokens), atol=1e-4, rtol=1e-4
        )
