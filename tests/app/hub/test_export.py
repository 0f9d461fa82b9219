"""What transformers makes of our models:
the same logits, with padding and without, with a cache and without.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.hub.architectures import fitting
from app.hub.facts import facts_of
from app.hub.weights import views
from app.registry import UserError
from tests.support.hub_models import CASES, DOUBLED, VOCAB, config_of, model_of, written

transformers = pytest.importorskip("transformers", minversion="5.0")


def read(folder: Path) -> Any:
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert (
        not loaded["missing_keys"]
        and not loaded["unexpected_keys"]
        and not loaded["mismatched_keys"]
    )
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("case", [*CASES, *DOUBLED])
def test_transformers_gives_our_logits(case: str, tmp_path: Path) -> None:
    config = config_of(*(CASES | DOUBLED)[case])
    ours = model_of(config)
    architecture = written(tmp_path, config, ours)
    assert architecture.name == case.partition(",")[0]
    theirs = read(tmp_path)
    tokens = torch.randint(VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))
    expected = ours.logits(tokens)
    assert expected.std() > 0.3
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(theirs(tokens, use_cache=False).logits, expected, **close)

    first = theirs(tokens[:, :9], use_cache=True)
    rest = theirs(tokens[:, 9:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, expected[:, 9:], **close)

    mask = torch.ones_like(tokens)
    mask[1, :4] = 0  # padding on the left
    padded = theirs(tokens.masked_fill(mask == 0, 0), attention_mask=mask).logits
    torch.testing.assert_close(padded[1, 4:], ours.logits(tokens[1:, 4:])[0], **close)


@pytest.mark.parametrize("balance", ["loss_free", "pid"])
def test_a_bias_that_the_architecture_has_no_place_for_is_refused_by_name(balance: str) -> None:
    config = config_of(*CASES["mixtral"], f"balance={balance}")
    with pytest.raises(UserError, match=r"balance offset=True \(False there\)"):
        fitting(facts_of(config, model_of(config)))


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_that_is_saved_goes_out_whole(case: str, tmp_path: Path) -> None:
    """All of our state but what only training reads, each value once."""
    config = config_of(*CASES[case])
    model = model_of(config)
    architecture = written(tmp_path, config, model)
    with torch.no_grad():
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for view in views(model, architecture).values():
            view.add_(1.0)
    for name, tensor in model.state_dict().items():
        if name.endswith(".step"):
            continue
        assert torch.equal(tensor, before[name] + 1.0), name
