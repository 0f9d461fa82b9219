"""A language model of the router zoo for `transformers`, in one file: load it with
`trust_remote_code=True`.

SOURCES are the modules of the model as they were when it was exported: the transformer, its routers
and its experts. They are imported from here, under a name of their own. A forward pass computes all
positions; there is no cache.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

SOURCES: dict[str, str] = {}
REDUNDANT = ("cu_seq_lens_k", "max_length_q", "max_length_k")  # beside cu_seq_lens_q
# in the names of what stays float32
ROUTING = re.compile(r"\.router\.|\.balancer\.|\.shared_score\.")

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

    def __init__(self, router_zoo: dict[str, object] | None = None, **more: Any) -> None:
        self.router_zoo = router_zoo or {}
        super().__init__(**more)


class RouterZooForCausalLM(PreTrainedModel, GenerationMixin):
    """The model, with the interface of the causal language models of `transformers`.

    Every argument of those is honoured, or refused by name: there is no cache and no output of
    attention weights. Routers and balance state stay float32 whatever the dtype of the model. The
    loss has no balance term.
    """

    config_class = RouterZooConfig
    base_model_prefix = "model"
    # Trainer gives `num_items_in_batch`, and does not divide by the accumulation steps
    accepts_loss_kwargs = True
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: RouterZooConfig) -> None:
        super().__init__(config)
        for name in SOURCES:
            importlib.import_module(f"{ROOT}.{name}")  # parts register themselves
        assemble = importlib.import_module(f"{ROOT}.app.model.assemble")
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.device("cpu"):
                self.model = assemble.build_model(config.router_zoo, config.vocab_size).to(dtype)
        finally:
            torch.set_default_dtype(dtype)
        # buffers that no file holds, by module and name
        self.tables: dict[Any, dict[str, Tensor]] = {}
        in_files = self.model.state_dict().keys()
        for path, buffer in self.model.named_buffers():
            if path not in in_files:
                place, _, name = path.rpartition(".")
                module = self.model.get_submodule(place)
                self.tables.setdefault(module, {})[name] = buffer.clone()
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        routing = [
            name
            for name, tensor in tensors.items()
            if ROUTING.search(name) and tensor.is_floating_point()
        ]
        self._keep_in_fp32_modules = self._keep_in_fp32_modules_strict = routing
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Fill the buffers that no file holds; weights are those of the file."""
        for name, table in self.tables.get(module, {}).items():
            module.get_buffer(name).copy_(table)

    def get_input_embeddings(self) -> Any:
        return self.model.embedding

    def set_input_embeddings(self, value: object) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> object:
        return self.model.head

    def set_output_embeddings(self, new_embeddings: object) -> None:
        self.model.head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: object = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Compute logits, and a loss if there are labels.

        Args:
            input_ids: Tokens (B, S).
            attention_mask: (B, S), 0 on padding, which may be on either side; or (B, 1, S, S), bool
                (True: may look) or additive (0: may look).
            position_ids: (B, S) or (1, S). A document begins wherever a number is not one more than
                the one before; documents do not see each other. Rotary positions depend on
                differences inside of a document only.
            past_key_values: Refused: there is no cache.
            inputs_embeds: (B, S, D), in place of `input_ids`. Refused by routers that read token
                ids, if alone.
            labels: (B, S), -100 where there is nothing to predict.
            use_cache: Refused if true.
            output_attentions: Refused if true.
            output_hidden_states: Whether to return the embeddings and the output of every block,
                the last one normed.
            return_dict: False returns a tuple.
            logits_to_keep: The number of last positions whose logits are computed, or their places;
                0: all.
            seq_idx: (B, S), the number of the document of each position.
            cu_seq_lens_q: (N + 1,), where documents begin and end in a single row.
            num_items_in_batch: What the sum of the losses is divided by; by default the number of
                predicted tokens.
            shift_labels: (B, S) labels that are shifted already.
            kwargs: None or False only, but for `cu_seq_lens_k`, `max_length_q` and `max_length_k`,
                which say nothing that `cu_seq_lens_q` does not.

        Raises:
            ValueError: An argument is not supported, or does not fit the others.
        """
        refused = {
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
        }
        refused |= {name: value for name, value in kwargs.items() if name not in REDUNDANT}
        for name, value in refused.items():
            if value is not None and value is not False:
                raise ValueError(f"{name}: not supported by {type(self).__name__}; leave it out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: give exactly one of them")
        embedded = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        document = documents(embedded, position_ids, seq_idx, cu_seq_lens_q)
        valid, mask = masks(embedded, attention_mask, document)
        seed = int(torch.randint(2**31, ()).item()) if self.training else 0  # of noisy routers
        wants_states = (
            output_hidden_states
            if output_hidden_states is not None
            else self.config.output_hidden_states
        )
        outputs: list[Tensor] = []
        hooks = []
        for block in self.model.blocks if wants_states else ():
            hooks.append(block.register_forward_hook(lambda _, __, out: outputs.append(out[0])))
        try:
            hidden, _ = self.model.hidden(
                input_ids, valid, None, seed, embedded=embedded, mask=mask
            )
        finally:
            for hook in hooks:
                hook.remove()
        kept = (
            hidden[:, -logits_to_keep:]
            if isinstance(logits_to_keep, int)
            else hidden[:, logits_to_keep]
        )
        logits = self.model.head(kept)
        loss = None
        if labels is not None or shift_labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=logits.size(-1),
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        states = None
        if wants_states:
            if len(outputs) != len(self.model.blocks):
                raise ValueError(
                    "output_hidden_states: not supported by a model that runs its blocks several "
                    "times"
                )
            states = (embedded, *outputs[:-1], hidden)
        output = CausalLMOutput(loss=loss, logits=logits, hidden_states=states)
        as_dict = return_dict if return_dict is not None else self.config.return_dict
        return output if as_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, **kwargs: object
    ) -> dict[str, object]:
        """All tokens, each time."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}


def documents(
    x: Tensor, position_ids: Tensor | None, seq_idx: Tensor | None, cu_seq_lens: Tensor | None
) -> Tensor | None:
    """The number of the document (B, S) that each position of x (B, S, D) belongs to; None:
    a row is one document.
    """
    batch, length = x.shape[:2]
    if seq_idx is not None:
        return seq_idx.expand(batch, length)
    if position_ids is not None:
        return (
            (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1)
            .cumsum(-1)
            .expand(batch, length)
        )
    if cu_seq_lens is not None:
        if batch != 1:
            raise ValueError("cu_seq_lens_q: is of a single row; give position_ids")
        place = torch.arange(length, device=x.device)
        return torch.searchsorted(cu_seq_lens.to(x.device), place, right=True)[None]
    return None


def masks(
    x: Tensor, attention_mask: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Which positions (B, S) of x (B, S, D) are no padding, and where each may look (B, 1, S, S),
    None: causally.
    """
    batch, length = x.shape[:2]
    place = torch.arange(length, device=x.device)
    # a position always sees itself: without any, softmax has no value
    own = place == place[:, None]
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.shape[-2:] != (length, length) or document is not None:
            raise ValueError(
                "attention_mask: with four dimensions it must be (B, 1, S, S) and say everything "
                "itself"
            )
        boolean = attention_mask.dtype == torch.bool
        allowed = (
            attention_mask
            if boolean
            else attention_mask > torch.finfo(attention_mask.dtype).min / 2
        )
        blind = ~allowed.any(-1, keepdim=True)
        mask = (
            allowed | (own & blind)
            if boolean
            else attention_mask.masked_fill(own & blind, 0).to(x.dtype)
        )
        return ~blind.squeeze(-1).all(1).expand(batch, length), mask
    if attention_mask is not None and attention_mask.shape != (batch, length):
        raise ValueError(
            f"attention_mask: must be (B, S) or (B, 1, S, S), not {tuple(attention_mask.shape)}"
        )
    if attention_mask is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=x.device)
    else:
        valid = attention_mask.bool()
    if document is None and bool(valid.all()):
        return valid, None
    allowed = (place <= place[:, None]) & valid[:, None]
    if document is not None:
        allowed = allowed & (document[:, :, None] == document[:, None])
    return valid, (allowed | own)[:, None]
