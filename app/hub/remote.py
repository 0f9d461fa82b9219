"""Any model of ours as a folder with its own code:
one file that needs `transformers`, and nothing of ours.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.config.compose import Config
from app.hub.card import card
from app.hub.tokenizer import tokenizer_files
from app.hub.write import as_json, difference, held_out, write_folder
from app.model.assemble import build_model
from app.model.spec import ModelSpec, PartSpec, model_spec
from app.model.transformer import Transformer
from app.registry import UserError, find
from app.runs.read import TrainedRun

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TEMPLATE = HERE / "modeling_router_zoo.py"
REGISTRY = HERE / "bundled_registry.py"
FILE = "modeling_router_zoo.py"
OURS = ("app", "routers", "experts")
# stands in the sources for the name under which they are imported
MARK = "__BUNDLE__"
# what the file itself uses
BEGIN = ("app.model.assemble",)
CLASS = "RouterZooForCausalLM"


def export_remote(run: TrainedRun, out: Path, license_name: str) -> tuple[str, float]:
    """Writes a folder and compares, as `export`.

    Raises:
        UserError: the model reads what a user of transformers does not give, the folder is not
            empty, the disk is full, or the logits differ; what was written stays.
    """
    _require_own_code(run.config, run.model)
    tokens = held_out(run)
    # a router that needs more than tokens says so here
    run.model.logits(tokens)
    ends = {"bos_token_id": run.text.tokenizer.begin, "eos_token_id": run.text.tokenizer.separator}
    files, state = with_code(run.config, run.model, ends)
    files |= tokenizer_files(run.text.tokenizer, run.seq_len)
    files |= {"generation_config.json": as_json(ends | {"use_cache": False})}
    files |= {"README.md": card(run, CLASS, license_name, custom=True)}
    write_folder(out, files, state)
    return CLASS, difference(run.model, tokens, out, code=files[FILE], tokenizer=run.text.tokenizer)


def _require_own_code(config: Config, model: Transformer) -> None:
    """Check that all code of a model is of this repository: that of a plug-in does not go along.

    Raises:
        UserError: A part is of a plug-in.
    """
    for part in _parts(model_spec(config)):
        package = find(part.kind, part.name, part.key).__module__.partition(".")[0]
        if package not in OURS:
            raise UserError(
                f"{_key(part)}={part.name}: is of the package {package}, whose code --to hf-remote "
                "does not take along; add the part to this repository to export it"
            )
    for module in model.modules():
        package = type(module).__module__.partition(".")[0]
        if package not in (*OURS, "torch"):
            raise UserError(
                f"{type(module).__name__}: is of the package {package}; --to hf-remote takes only "
                "ours"
            )


def _parts(spec: ModelSpec) -> list[PartSpec]:
    """Return all parts that a model is made of."""
    parts = [*spec.router.values(), *spec.balance.values(), spec.experts, spec.activation]
    for layer in spec.layers:
        parts += layer.parts.values()
    return parts


def _key(part: PartSpec) -> str:
    """Return the option that chooses a part; balance terms are chosen by a list."""
    return part.key if part.kind == "balance" else part.key.replace(".", "/")


def with_code(
    config: Config, model: Transformer, more: Mapping[str, object]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Config (with `more` in it) and code of a model, and its weights;
    of what balances, what acts on the choice.
    """
    terms: dict[str, Any] = dict(model.balancer.terms.items())
    acting = [name for name, term in terms.items() if term.offset() is not None or term.holds_k]
    own = {key: config[key] for key in ("model", "router", "experts", "allow_non_causal")}
    own["balance"] = {key: term for key, term in config["balance"].items() if key in acting}
    vocab_size = model.embedding.num_embeddings
    known = model.state_dict()
    names = {"AutoConfig": "RouterZooConfig", "AutoModelForCausalLM": CLASS}
    about = {
        "model_type": "router_zoo",
        "architectures": [CLASS],
        "dtype": "float32",
        "router_zoo": own,
        "auto_map": {auto: f"{TEMPLATE.stem}.{name}" for auto, name in names.items()},
        "vocab_size": vocab_size,
        "max_position_embeddings": config["data"]["seq_len"],
        "hidden_size": model.config.dim,
        "num_hidden_layers": model.config.num_layers,
        "tie_word_embeddings": model.config.tie_embeddings,
        **more,
    }
    with torch.device("meta"):
        kept = build_model(own, vocab_size)
    # is the embedding, and is written once
    shared = "head.weight" if model.config.tie_embeddings else None
    weights = {f"model.{name}": known[name].clone() for name in kept.state_dict() if name != shared}
    return {"config.json": as_json(about), FILE: bundled(kept)}, weights


def bundled(model: Transformer) -> str:
    """The file, with the source of every module that the model is made of."""
    first = {type(module).__module__ for module in model.modules()}
    sources = {
        name: _source(name) for name in sorted(_needed({*first, *BEGIN})) if name != "app.registry"
    }
    sources["app.registry"] = REGISTRY.read_text(encoding="utf-8")
    text = "".join(f"    {name!r}: r'''{source}''',\n" for name, source in sources.items())
    return TEMPLATE.read_text(encoding="utf-8").replace(
        "SOURCES: dict[str, str] = {}\n", f"SOURCES = {{\n{text}}}\n"
    )


def _needed(names: set[str]) -> set[str]:
    """Return these modules of ours, and all that they import."""
    needed: set[str] = set()
    waiting = {name for name in names if name.split(".")[0] in OURS}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= _imported(name) - needed
    return needed


def _imported(name: str) -> set[str]:
    """Return the modules of ours that a module imports."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(_file(name).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] not in OURS:
            continue
        imported.add(node.module)
        for alias in node.names:
            # What is imported may be a module itself.
            inner = f"{node.module}.{alias.name}"
            if _file(inner).exists():
                imported.add(inner)
    return imported


def _file(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _source(name: str) -> str:
    """A module whose imports of ours lead into the bundle,
    and whose operators no other model shares.
    """
    text = _file(name).read_text(encoding="utf-8").replace('custom_op("', f'custom_op("{MARK}')
    return re.sub(rf"^(\s*from )({'|'.join(OURS)})\b", rf"\1{MARK}.\2", text, flags=re.MULTILINE)
