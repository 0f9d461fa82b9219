"""A folder of `transformers`, or a model of the Hub, as a run of ours:
config, tokenizer, weights, no training yet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from app.config.compose import Config, composed
from app.config.overrides import key_of
from app.config.saved import CONFIG as OUR_CONFIG
from app.config.saved import OVERRIDES, RUNS, dumped, listed
from app.data.module import build_data
from app.data.sources import first_line
from app.hub.architecture import Architecture
from app.hub.architectures import named
from app.hub.facts import Facts
from app.hub.weight_files import CONFIG, plain_copy, tensors_of
from app.hub.weights import write_into
from app.hub.write import difference
from app.model.assemble import build_model
from app.model.transformer import Transformer
from app.registry import UserError
from app.runs.folder import new_run, require_name, taken
from app.runs.read import PREFIX
from app.runs.text import text_files
from app.training.files import read_json

# tokens of a row, where the model would take more
LONGEST = 2048


def import_run(place: str, name: str, typed: Sequence[str]) -> tuple[Path, float | None]:
    """Makes runs/NAME of a model of theirs; returns it and the largest difference of two logits.

    None instead where transformers has no code for the model.

    Raises:
        UserError: ours cannot compute the model, a file is damaged, the name is taken, or the text
            cannot be read.
    """
    require_name(name)
    if (RUNS / name).exists():
        raise taken(RUNS / name)
    folder = found(place)
    architecture, config = config_of(folder, [*typed, f"run={name}"])
    data = build_data(config["data"], config["tokenizer"], config["seed"])
    tensors = tensors_of(folder)
    data.prepare()
    model = model_of(folder, architecture, config, data.vocab_size, tensors)
    apart = None
    if _is_known(architecture.name):
        with plain_copy(folder) as copy:
            apart = difference(model, random_tokens(data.tokenizer.vocab_size), copy, name=folder)
    config = config | {"data": config["data"] | data.source.pinned}
    files = {OUR_CONFIG: dumped(config), OVERRIDES: listed([*typed])} | text_files(data)
    state = {f"{PREFIX}{key}": tensor for key, tensor in model.state_dict().items()}
    new_run(RUNS / name, files, state)
    return RUNS / name, apart


def random_tokens(vocab_size: int) -> Tensor:
    """Two rows (2, 64) of any tokens."""
    return torch.randint(vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))


def found(place: str) -> Path:
    """The folder of a model: a local one, or that of a name on the Hub.

    Raises:
        UserError: it is neither, or cannot be fetched.
    """
    path = Path(place)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(place, allow_patterns=["*.json", "*.safetensors"]))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{place}: is no folder here, and cannot be fetched from the Hub ({first_line(error)})"
        ) from error


def config_of(folder: Path, typed: Sequence[str]) -> tuple[Architecture, Config]:
    """Return the architecture and the config of ours that computes the same, with the typed
    overrides applied last.

    Text of the folder enters the config as values. It is never parsed as an override or resolved as
    a reference.

    Raises:
        UserError: Ours cannot compute the model, a file is missing or damaged, or an override would
            change the model.
    """
    architecture, facts = named(their_config(folder))
    own = model_overrides(facts)
    tokenizer = _tokenizer(folder)
    fixed = {key_of(word) for word in own} - {"data.seq_len"}
    for word in typed:
        if key_of(word) in fixed or key_of(word).partition(".")[0] in (
            "model",
            "experts",
            "router",
        ):
            raise UserError(f"{word}: is fixed by {folder}; leave it out")
    chosen = {key_of(word) for word in typed}
    if tokenizer and "tokenizer" not in chosen:
        own.append("tokenizer=file")
    config = composed([*own, *typed])
    if "tokenizer" not in chosen:
        values = {
            key: value for key, value in tokenizer.items() if f"tokenizer.{key}" not in chosen
        }
        config["tokenizer"] = config["tokenizer"] | values
    return architecture, config


def their_config(folder: Path) -> dict[str, object]:
    """Return the values of config.json, with the defaults of its architecture where it has none.

    Raises:
        UserError: The file is missing or damaged, or transformers refuses it.
    """
    plain = read_json(folder / CONFIG, dict)
    kind = str(plain.get("model_type"))
    if not _is_known(kind):
        return plain
    from transformers import CONFIG_MAPPING

    try:
        read = CONFIG_MAPPING[kind].from_dict(plain)
        values = read.to_dict()
        return {name: values.get(other) for name, other in read.attribute_map.items()} | values
    # its validators and constructors raise whatever they meet in a damaged config
    except Exception as error:
        reason = " ".join(f"{first_line(error)} {error.__cause__ or ''}".split())
        raise UserError(f"{folder / CONFIG}: is refused by transformers: {reason}") from error


def _is_known(kind: str) -> bool:
    """Whether transformers has code for it."""
    from transformers import CONFIG_MAPPING  # seconds to import

    return kind in CONFIG_MAPPING


def model_overrides(facts: Facts) -> list[str]:
    """Return the overrides of `train.py` that build a model with these facts,
    all of them numbers and names of ours.
    """
    sizes = {
        key: value
        for key, value in facts.items()
        if key.startswith("model.") and key != "model.attention_scale"
    }
    sizes["model.hidden_dim"] = facts.get("model.hidden_dim") or facts["expert_dim"]
    sizes["data.seq_len"] = min(facts["data.seq_len"], LONGEST)
    if facts["experts"] == "none":
        return _words(sizes | {"experts": "dense", "experts.hidden_dim": sizes["model.hidden_dim"]})
    dense = facts["dense_layers"]
    if dense:
        sizes["model.moe_layers"] = [i for i in range(facts["model.num_layers"]) if i not in dense]
    parts = {key: value for key, value in facts.items() if key.startswith(("router/", "router."))}
    balance = {"balance": "loss_free"} if facts["balance offset"] else {}
    return _words({"router": "topk", **_layout(facts), **parts, **sizes, **balance})


def _layout(facts: Facts) -> Facts:
    """By the shared experts: none, counted, behind a gate, of any width."""
    pool = {
        "num_experts": facts["num_experts"],
        "top_k": facts["top_k"],
        "hidden_dim": facts["expert_dim"],
    }
    count = facts.get("num_shared") or 0
    width = facts.get("shared_dim") or 0
    if count:
        own = {"name": "deepseek", "segments": 1, "num_shared": count}
        own |= {key: pool[key] + count for key in ("num_experts", "top_k")}
    elif not width:
        own = {"name": "coarse"}
    elif facts["shared"] == "gated":
        own = {"name": "shared_gated", "shared_dim": width}
    else:
        own = {"name": "residual", "dense_dim": width, "coefficient": False}
    values = pool | own
    return {"experts": values.pop("name")} | {
        f"experts.{key}": value for key, value in values.items()
    }


def _words(values: Mapping[str, object]) -> list[str]:
    plain = {True: "true", False: "false", None: "null"}
    return [
        f"{key}={plain[v] if isinstance(v, bool) or v is None else v}".replace(" ", "")
        for key, v in values.items()
    ]


def _tokenizer(folder: Path) -> dict[str, str | None]:
    """Return the values of `tokenizer=file` for the tokenizer beside a model; empty where there is
    none.

    Raises:
        UserError: tokenizer_config.json is damaged.
    """
    file = folder / "tokenizer.json"
    path = folder / "tokenizer_config.json"
    if not file.exists():
        return {}
    about = read_json(path, dict) if path.exists() else {}
    end, begin = (
        _special_token(path, name, about.get(name)) for name in ("eos_token", "bos_token")
    )
    # the model was not trained with it
    if end is None or about.get("add_bos_token") is False:
        begin = None
    return {"path": str(file.absolute()), "separator": end, "begin": begin}


def _special_token(path: Path, name: str, token: object) -> str | None:
    """Return the text of `bos_token` or `eos_token` in tokenizer_config.json,
    which may have it as an object.
    """
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str | None):
        raise UserError(f"{path}: {name} must be a text or null; restore it")
    return token


def model_of(
    folder: Path,
    architecture: Architecture,
    config: Config,
    vocab_size: int,
    tensors: Mapping[str, Tensor],
) -> Transformer:
    """Return our model with the weights of the folder.

    Raises:
        UserError: They do not fit its config; found before memory is allocated for the model.
    """
    with torch.device("meta"):
        _require_fit(
            folder, write_into(_built(folder, config, vocab_size, tensors), architecture, tensors)
        )
    model = build_model(config, vocab_size).eval()
    _require_fit(folder, write_into(model, architecture, tensors))
    return model


def _built(
    folder: Path, config: Config, vocab_size: int, tensors: Mapping[str, Tensor]
) -> Transformer:
    """Return the model without memory, where its config does not
    describe far more than the folder holds.
    """
    sizes = config["model"]["num_layers"], config["experts"].get("num_experts", 0)
    held = sum(tensor.numel() for tensor in tensors.values())
    if sizes[0] > len(tensors) or sizes[1] > held:
        raise UserError(
            f"{folder}: its weights do not fit its {CONFIG}: {len(tensors)} tensors for {sizes[0]} "
            "layers"
        )
    model = build_model(config, vocab_size).eval()
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * held:
        raise UserError(
            f"{folder}: its weights do not fit its {CONFIG}: it describes {described:,} "
            f"parameters, and the files hold {held:,}"
        )
    return model


def _require_fit(folder: Path, wrong: Sequence[str]) -> None:
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{folder}: its weights do not fit its {CONFIG}: {'; '.join(wrong[:3])}{more}"
        )
