"""A language model of the router zoo for `transformers`, in one file: load it with `trust_remote_code=True`.

SOURCES are the modules of the model as they were when it was exported: the transformer, its routers and its experts.
They are imported from here, under a name of their own. A forward pass computes all positions; there is no cache.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

SOURCES: dict[str, str] = {}

ROOT = "router_zoo_" + hashlib.sha256(repr(sorted(SOURCES.items())).encode()).hexdigest()[:8]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of SOURCES, and packages around them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of a module or a package below ROOT."""
        if name != ROOT and not name.startswith(f"{ROOT}."):
            return None
        inner = name.removeprefix(ROOT).removeprefix(".")
        package = not inner or any(other.startswith(f"{inner}.") for other in SOURCES)
        if not package and inner not in SOURCES:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        """Runs its source, if it has one."""
        inner = module.__name__.removeprefix(ROOT).removeprefix(".")
        source = SOURCES.get(inner, "").replace("__BUNDLE__", ROOT)
        exec(compile(source, f"<{module.__name__}>", "exec"), module.__dict__)


sys.meta_path.append(Finder())


class RouterZooConfig(PretrainedConfig):
    """The config of the run that the model was trained in, as `router_zoo`."""

    model_type = "router_zoo"

    def __init__(self, router_zoo: dict[str, Any] | None = None, **more: Any) -> None:
        self.router_zoo = router_zoo or {}
        super().__init__(**more)


class RouterZooForCausalLM(PreTrainedModel, GenerationMixin):
    """The model, with the interface that `generate` needs."""

    config_class = RouterZooConfig
    base_model_prefix = "model"

    def __init__(self, config: RouterZooConfig) -> None:
        super().__init__(config)
        for name in SOURCES:
            importlib.import_module(f"{ROOT}.{name}")  # parts register themselves
        assemble = importlib.import_module(f"{ROOT}.app.model.assemble")
        with torch.device("cpu"):
            self.model = assemble.build_model(config.router_zoo, config.vocab_size)
        saved = self.model.state_dict()
        self.tables = {name: table.clone() for name, table in self.model.named_buffers() if name not in saved}
        self.past = importlib.import_module(f"{ROOT}.app.model.past").Past
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Weights are those of the file."""

    def _fill_tables(self) -> None:
        """Fills what no file has, once: `from_pretrained` leaves it empty."""
        for name, table in self.tables.items():
            self.model.get_buffer(name).copy_(table)
        self.tables = {}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """Logits (B, S, V) of tokens (B, S); padding may stand on the left."""
        self._fill_tables()
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        past = self.past()
        past.see(valid)
        hidden, _ = self.model.hidden(input_ids, valid, None, past=past)
        logits = self.model.head(hidden)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """All tokens, each time."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}
