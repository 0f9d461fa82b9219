"""The README.md of a folder that is given away: what the model is, what it learned from, how good it is."""

import json

from app.cost.budget import Budget
from app.model.assemble import KINDS
from app.runs.folder import SUMMARY
from app.runs.read import TrainedRun
from app.training.checkpoints import step_of
from app.training.files import read_whole


def card(run: TrainedRun, kind: str, license_name: str, custom: bool) -> str:
    """Markdown with the front matter that the Hub reads."""
    budget = Budget.of(run.model, run.seq_len).summary()
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", f"license: {license_name}",
             "tags: [mixture-of-experts]", "---"]  # fmt: skip
    trust = ", trust_remote_code=True" if custom else ""
    facts = {
        "architecture": kind,
        "router": ", ".join(f"{part}: {run.config['router'][part]['name']}" for part in KINDS),
        "experts": run.config["experts"]["name"],
        "parameters": f"{budget['total_params']:,}, {budget['active_params']:,} of them active per token",
        "training FLOPs per token": f"{budget['flops_per_token_train']:,.0f}",
        "steps": f"{step_of(run.checkpoint):,}",
        "text": ", ".join(run.text.domains),
        **_scores(run),
    }
    use = f'AutoModelForCausalLM.from_pretrained("."{trust})'
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    code = ["```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            f'model, tokenizer = {use}, AutoTokenizer.from_pretrained(".")', "```"]  # fmt: skip
    first = f"# {run.folder.name}\n\nA language model trained with the router zoo; weights in float32."
    return "\n".join([*front, "", first, "", *table, "", *code, ""])


def _scores(run: TrainedRun) -> dict[str, str]:
    """Of the run's own held-out text; a run that has not ended has none."""
    path = run.folder / SUMMARY
    if not path.exists():
        return {}
    found = json.loads(read_whole(path))
    scores = {"held-out bits per byte, mean over domains": "val_bpb", "held-out perplexity per token": "val_ppl"}
    return {"training tokens": f"{found['tokens_seen']:,}", **{s: f"{found[name]:.4g}" for s, name in scores.items()}}
