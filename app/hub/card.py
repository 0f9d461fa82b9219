"""The README.md of a folder that is given away:
what the model is, what it learned from, how good it is.
"""

import json
import re

from app.cost.budget import Budget
from app.model.spec import KINDS
from app.runs.read import TrainedRun
from app.runs.summary import is_validated
from app.training.checkpoints import read_checkpoint, step_of
from app.training.markdown import escaped


def card(run: TrainedRun, kind: str, license_name: str, custom: bool) -> str:
    """Markdown with the front matter that the Hub reads."""
    budget = Budget.of(run.model, run.seq_len).summary()
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"license: {_yaml(license_name)}",
        "tags: [mixture-of-experts]",
        "---",
    ]
    trust = ", trust_remote_code=True" if custom else ""
    facts = {
        "architecture": kind,
        "router": ", ".join(f"{part}: {run.config['router'][part]['name']}" for part in KINDS),
        "experts": run.config["experts"]["name"],
        "parameters": f"{budget['total_params']:,}, {budget['active_params']:,} of them active "
        "per token",
        "training FLOPs per token": f"{budget['flops_per_token_train']:,.0f}",
        "steps": f"{step_of(run.checkpoint):,}",
        "text": ", ".join(map(escaped, run.text.domains)),
        **_training(run),
    }
    use = f'AutoModelForCausalLM.from_pretrained("."{trust})'
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    code = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model, tokenizer = {use}, AutoTokenizer.from_pretrained(".")',
        "```",
    ]
    first = (
        f"# {escaped(run.folder.name)}\n\nA language model trained with the router zoo; weights in "
        "float32."
    )
    return "\n".join([*front, "", first, "", *table, "", *code, ""])


def _yaml(text: str) -> str:
    """A text as a value of the front matter."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text)


def _training(run: TrainedRun) -> dict[str, str]:
    """Return the training tokens of the checkpoint, and its scores if it was validated at its own
    step.

    The summary of a run is about its last step, and an imported or merged model was not trained
    here.
    """
    saved = read_checkpoint(run.checkpoint, only_shapes=True)
    facts = {}
    tokens = saved.get("tokens_seen")
    if isinstance(tokens, int) and step_of(run.checkpoint):
        facts["training tokens"] = f"{tokens:,}"
    if is_validated(saved):
        values = saved["validation"]["values"]
        facts["held-out bits per byte, mean over domains"] = f"{values['bpb']:.4g}"
        facts["held-out perplexity per token"] = f"{values['ppl']:.4g}"
    return facts
