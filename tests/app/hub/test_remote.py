"""Models with their own code: the same logits in a process that cannot import this repository,
for every part.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.hub.remote import FILE, with_code
from app.hub.write import write_folder
from app.model.assemble import build_model
from app.pages.exports import pairs
from app.registry import UserError
from tests.support.hub_models import VOCAB
from tests.support.shell import environment

pytestmark = pytest.mark.nightly

pytest.importorskip("transformers", minversion="5.0")
READ = """
import sys, torch
from transformers import AutoModelForCausalLM
assert not any(name.split(".")[0] in ("app", "routers", "experts") for name in sys.modules)
tokens, found = torch.load("tokens.pt"), {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True
    )
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    written = model.generate(
        tokens[:1, :4], attention_mask=mask[:1, :4], max_new_tokens=6, do_sample=False
    )
    plain = model(tokens).logits.detach()
    padded = model(tokens, attention_mask=mask).logits.detach()
    found[folder] = plain, padded, written[0]
torch.save(found, "found.pt")
"""


@torch.no_grad()
@pytest.mark.parametrize("router", [False, True], ids=["every layout", "every router"])
def test_every_part_computes_the_same_where_only_transformers_is(
    router: bool, tmp_path: Path
) -> None:
    tokens = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.save(tokens, tmp_path / "tokens.pt")
    expected = {}
    for name, layout, config in pairs():
        if name == "oracle" or (layout != "coarse" if router else name not in ("topk", "context")):
            # an oracle reads the domain
            continue
        torch.manual_seed(0)
        try:
            model = build_model(config, VOCAB).eval()
        except UserError:
            # these two cannot go together
            continue
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        folder = f"{name}-{layout}".replace(".", "_")
        write_folder(tmp_path / folder, *with_code(config, model, {"eos_token_id": None}))
        expected[folder] = model.logits(tokens), model.logits(tokens[1:, 3:]), name
    assert len(expected) > (30 if router else 10)
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ, *expected],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment() | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "found.pt")
    for folder, (logits, padded, name) in expected.items():
        close = {"atol": 1e-4, "rtol": 1e-4, "msg": lambda text, folder=folder: f"{folder}: {text}"}
        torch.testing.assert_close(found[folder][0], logits, **close)
        # which look at all tokens, or at how many there are
        if name not in ("expert_choice", "seq_top_k"):
            torch.testing.assert_close(found[folder][1][1, 3:], padded[0], **close)
        assert (
            len(found[folder][2]) == 10 and found[folder][2][:4].tolist() == tokens[0, :4].tolist()
        )


def test_the_file_has_the_parts_of_the_model_and_no_others(tmp_path: Path) -> None:
    config = next(
        config for name, layout, config in pairs() if (name, layout) == ("gru", "deepseek")
    )
    files, _ = with_code(config, build_model(config, VOCAB), {})
    assert "'routers.score.gru'" in files[FILE] and "'experts.deepseek'" in files[FILE]
    assert (
        "'routers.score.cosine'" not in files[FILE] and "'routers.balance.aux'" not in files[FILE]
    )
