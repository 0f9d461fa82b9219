"""The decoder-only transformer that the experts are plugged into.

Pre-norm blocks with RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), attention with rotary
positions, and SwiGLU (Shazeer 2020, arXiv 2002.05202).
"""

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.model.attention import Positions, rotary
from app.model.block import block_of
from app.model.config import ModelConfig
from app.model.documents import Mask, document_mask
from app.model.loss import token_nll
from app.model.past import Past
from app.registry import require
from experts.contract import Experts
from experts.grouped.device import autocast_dtype
from experts.low_rank import SkilledLinear
from experts.matrix import HasMatrixLayouts, MatrixLayout
from routers.balancer import Balancer
from routers.contract import Context, Routing
from routers.router import Router


class Transformer(nn.Module):
    """Embedding, blocks, head; it owns what all its layers share: the scores' common part and the
    balance terms.

    `ffns` are the feed-forward parts of all layers, each mapping (x, context) to (y, Routing or
    None).
    """

    def __init__(
        self, config: ModelConfig, ffns: list[nn.Module], balancer: Balancer, vocab_size: int
    ) -> None:
        super().__init__()
        self.config = config
        self.balancer = balancer
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.blocks = nn.ModuleList(block_of(config, ffn) for ffn in ffns)
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        # What the scores of all layers have in common, such as the cell of a recurrent router.
        self.shared_score: nn.Module | None = None
        for router in self.routers():
            if self.shared_score is None:
                self.shared_score = router.score.shared()
        self._check_routers()
        self._initialize(config.init_std)

    def _check_routers(self) -> None:
        kinds = {type(router.score) for router in self.routers()}
        names = sorted(kind.__name__ for kind in kinds if kind.carries)
        fits = len(kinds) == 1 or not names
        require(
            "router.layers", names, fits, "hands a state to the layer above, so all layers need it"
        )
        for router in self.routers():
            self.balancer.check(router.score, router.select)

    @property
    def num_experts(self) -> int:
        """E of the MoE layers; 0 for a dense model."""
        routers = self.routers()
        return routers[0].num_experts if routers else 0

    def routers(self) -> list[Router]:
        """The routers of the MoE layers, from the bottom up."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def router_parameters(self) -> list[nn.Parameter]:
        """Of all routers, with what their scores share."""
        parameters = [p for router in self.routers() for p in router.parameters()]
        if self.shared_score is not None:
            parameters += self.shared_score.parameters()
        return parameters

    def matrices(self) -> list[nn.Parameter]:
        """Of the embedding, the blocks and the head, alone or in stacks;
        none of the routers', none that is settled.
        """
        others = {*self.router_parameters()}
        for module in self.modules():
            if isinstance(module, Experts | SkilledLinear):
                others.update(module.settled())
        return [p for p in self.parameters() if p.dim() >= 2 and p not in others]

    def stacked_vectors(self) -> list[nn.Parameter]:
        """Return the parameters that stack one vector per expert, such as biases."""
        vectors = []
        for module in self.modules():
            if isinstance(module, Experts):
                vectors += module.settled()
        return vectors

    def matrix_layouts(self) -> dict[nn.Parameter, MatrixLayout]:
        """Return the layout of every block weight that has heads or hidden units."""
        layouts: dict[nn.Parameter, MatrixLayout] = {}
        for module in self.blocks.modules():
            if isinstance(module, HasMatrixLayouts):
                for name, layout in module.matrix_layouts().items():
                    layouts[module.get_parameter(name)] = layout
        return layouts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the model and changes its dtype, but routers and balance stay float32:
        bfloat16 scores tie.
        """
        modules: list[nn.Module] = [*self.routers(), self.balancer]
        if self.shared_score is not None:
            modules.append(self.shared_score)
        stay_float32 = set()
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                stay_float32.add(id(tensor))
                if tensor.grad is not None:
                    stay_float32.add(id(tensor.grad))

        def apply(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in stay_float32 and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        return super()._apply(apply, recurse)

    @torch.no_grad()
    def _initialize(self, std: float) -> None:
        """Draws every matrix from N(0, std^2);
        routers and settled weights keep the values that their classes chose.
        """
        for matrix in self.matrices():
            matrix.normal_(0, std)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        valid: Tensor,
        document: Tensor,
        seed: int = 0,
        step: int = 0,
        domain: Tensor | None = None,
        row: int = 0,
    ) -> tuple[Tensor, list[Routing]]:
        """Negative log-likelihood in nats of every target (B, S) float32, and the routings of the
        MoE layers.

        Args:
            tokens: (B, S) int64.
            targets: (B, S) int64, -100 where nothing is to be predicted; the likelihood is 0 there.
            valid: (B, S) bool, False on padding.
            document: (B, S) int64; positions with different numbers do not see each other.
            seed: of this step; noise in layer l is drawn from (seed, l) and the number of the row.
            step: optimizer steps made so far, for parts that change in the course of a training.
            domain: (B, S) int64, which text a position is from; None where nobody knows.
            row: which row of the whole step the first one is.
        """
        hidden, routings = self.hidden(tokens, valid, document, seed, step, domain, row)
        return token_nll(hidden, self.head.weight, targets), routings

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits (B, S, V) of tokens (B, S) that are one document a row."""
        hidden, _ = self.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), None)
        return self.head(hidden)

    def logits_of_next(self, tokens: Tensor, valid: Tensor, past: Past) -> Tensor:
        """Logits (B, V) of what follows tokens (B, S), the last positions that `past` has seen."""
        hidden, _ = self.hidden(tokens, valid, None, past=past)
        return self.head(hidden[:, -1])

    def hidden(
        self,
        tokens: Tensor | None,
        valid: Tensor,
        document: Tensor | None,
        seed: int = 0,
        step: int = 0,
        domain: Tensor | None = None,
        row: int = 0,
        alone: int | None = None,  # as in `Context`
        # its last positions are these; None: the first ones are
        past: Past | None = None,
        embedded: Tensor | None = None,  # (B, S, D), in the place of the embedded tokens
        # (B, 1, S, S): where a position may look, whatever document and past say
        mask: Mask = None,
    ) -> tuple[Tensor, list[Routing]]:
        """The normed output of the last block (B, S, D), and the routings;
        without `document` a row is one document.
        """
        x = self.embedding(tokens) if embedded is None else embedded
        found, cos, sin = self._places(x, document, past, autocast_dtype(x))
        mask = found if mask is None else mask
        known = None if domain is None else domain.flatten()
        context = Context(
            valid,
            None if tokens is None else tokens.flatten(),
            None,
            0.0,
            self.shared_score,
            0,
            row,
            step,
            known,
            alone,
        )
        offset = self.balancer.offset()
        routings: list[Routing] = []
        for number, block in enumerate(self.blocks):
            layer = len(routings)
            context = context._replace(
                state=routings[-1].state if routings else None,
                offset=0.0 if offset is None or layer == len(offset) else offset[layer],
                seed=seed * 1_000 + layer,
            )
            extended = None if past is None else partial(past.extended, number)
            x, routing = self._run(block, x, Positions(context, mask, cos, sin, extended))
            routings += [] if routing is None else [routing]
        return self.norm(x), routings

    def _places(
        self, x: Tensor, document: Tensor | None, past: Past | None, dtype: torch.dtype
    ) -> tuple[Mask, Tensor, Tensor]:
        """Where each position of x (B, S, D) may look, and its rotary angles."""
        config = self.config
        length = x.size(1)
        document = None if config.cross_documents else document
        mask = None if document is None else document_mask(document, config.head_width, dtype)
        if past is not None:
            mask = past.mask(length)
        total = length if past is None else past.valid.size(1)
        return mask, *rotary(total, config.head_width, config.rope_theta, x.device, total - length)

    def _run(
        self, block: nn.Module, x: Tensor, positions: Positions
    ) -> tuple[Tensor, Routing | None]:
        if self.config.activation_checkpointing and self.training:
            return checkpoint(block, x, positions, use_reentrant=False)
        return block(x, positions)
