"""The weights that papers print for their balance losses, in our units: what the experiments have,
and why.

    ours = printed * (the source's value at uniform load over ours) * (L where the source sums over
        layers, else 1)

Ours is a mean over layers, and 1.0 at uniform load for f.P: what a perfectly even router gives. The
source's value there follows from its formula or code (DeepSeekMoE eq. 12-14: 1; Hugging Face: k;
CompeteSMoE: 1 / k).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from app.config.compose import composed
from app.cost.budget import on_meta

SEQUENCE = "eq. 12-17, f over N / (K T)"


@dataclass(frozen=True)
class Weight:
    """A printed weight: of which experiment and term, and the convention of its source."""

    experiment: str
    term: str
    printed: float
    # the source's value at uniform load over ours
    uniform: float
    layers: Literal["sum", "mean"]
    source: str
    # whether the source could be read
    verified: bool = True

    @property
    def ours(self) -> float:
        """What it is in our units."""
        return (
            self.printed * self.uniform * (_layers(self.experiment) if self.layers == "sum" else 1)
        )

    @property
    def configured(self) -> float:
        """What the experiment's config has."""
        return float(_config(self.experiment)["balance"][self.term]["weight"])


@cache
def _config(experiment: str) -> dict[str, dict[str, dict[str, float]]]:
    return composed([f"experiment=paper/{experiment}"])


@cache
def _layers(experiment: str) -> int:
    return len(on_meta(_config(experiment)).routers())


def _each(names: str, *rest: object, **more: object) -> list[Weight]:
    return [Weight(name, *rest, **more) for name in names.split()]  # type: ignore[arg-type]


GSHARDS = (
    "deepseekmoe_2b_switch deepseekmoe_2b_gshard deepseekmoe_2b_gshard_x1_2 "
    "deepseekmoe_2b_gshard_x1_5"
)
WEIGHTS = [
    *_each(
        f"deepseekmoe_2b {GSHARDS}", "aux", 0.01, 1, "sum", f"2401.06066 section 4.1.3, {SEQUENCE}"
    ),
    Weight("deepseekmoe_16b", "aux", 0.001, 1, "sum", f"2401.06066 section 5.1.2, {SEQUENCE}"),
    *_each(
        "deepseekmoe_145b deepseekmoe_142b_half gshard_137b",
        "aux",
        0.003,
        1,
        "sum",
        "2401.06066 section 6.1",
    ),
    *_each(
        "deepseekmoe_145b deepseekmoe_142b_half", "device", 0.05, 1, "sum", "2401.06066 section 6.1"
    ),
    Weight("deepseek_v2", "aux", 0.003, 1, "sum", "2405.04434 section 3.1.2"),
    Weight("deepseek_v2", "device", 0.05, 1, "sum", "2405.04434 section 3.1.2"),
    Weight("deepseek_v2", "communication", 0.02, 1, "sum", "2405.04434 section 3.1.2"),
    Weight("deepseek_v2_lite", "aux", 0.001, 1, "sum", "2405.04434 appendix B"),
    Weight("deepseek_v3", "seq_v3", 0.0001, 1, "sum", "2412.19437 section 4.2, eq. 17-20"),
    Weight(
        "qwen3_30b_a3b",
        "aux",
        0.001,
        8,
        "mean",
        "Hugging Face's config and loss: k = 8 at uniform load",
    ),
    Weight("olmoe_1b_7b", "aux", 0.01, 1, "mean", "2409.02060 table 10, megablocks' loss"),
    Weight("olmoe_1b_7b", "z_loss", 0.001, 1, "mean", "2409.02060 table 10"),
    *_each(
        "rmoe_0_91b rmoe_0_91b_smoe",
        "aux",
        0.01,
        1,
        "mean",
        "2408.06793 section 5.1, megablocks' loss",
    ),
    *_each(
        "rmoe_enwik8_medium rmoe_wikitext103",
        "aux",
        0.01,
        0.5,
        "sum",
        "2408.06793 A.2, CompeteSMoE's code: 1 / k",
    ),
    Weight(
        "rmoe_enwik8_small", "aux", 0.01, 0.5, "sum", "2408.06793 A.2, CompeteSMoE's code: 1 / k"
    ),
    Weight(
        "grin",
        "aux",
        0.001,
        2,
        "mean",
        "Hugging Face's config of Phi-3.5-MoE and its loss: k = 2",
        verified=False,
    ),
    Weight(
        "gpt_oss", "aux", 0.001, 4, "mean", "Hugging Face's config and loss: k = 4", verified=False
    ),
    Weight(
        "kimi_k2",
        "seq_v3",
        0.001,
        1,
        "sum",
        "aux_loss_alpha of its released config",
        verified=False,
    ),
    Weight("deepseek_v4", "seq_v3", 0.0001, 1, "sum", "DeepSeek-V3's", verified=False),
    *_each(
        "noisy_topk",
        "importance",
        0.1,
        1,
        "mean",
        "1701.06538 appendix C, one layer",
        verified=False,
    ),
    *_each(
        "noisy_topk",
        "smooth_load",
        0.1,
        1,
        "mean",
        "1701.06538 appendix C, one layer",
        verified=False,
    ),
    Weight(
        "dynamic_moe",
        "aux",
        0.01,
        2,
        "sum",
        "2403.07652: f is not over k; k about 2",
        verified=False,
    ),
    Weight("dynamic_moe", "entropy", 0.0001, 1, "sum", "2403.07652", verified=False),
    Weight(
        "dynamic_moe_top1", "aux", 0.01, 1, "sum", "2403.07652: f is not over k = 1", verified=False
    ),
    Weight(
        "dynamic_moe_top2", "aux", 0.01, 2, "sum", "2403.07652: f is not over k = 2", verified=False
    ),
]


def markdown() -> str:
    """The table for docs/cells.md."""
    rows = "".join(
        f"| {w.experiment} | {w.term} | {w.printed:g} | {w.uniform:g} | {w.layers} | {w.ours:.4g} "
        f"| {w.source}{'' if w.verified else '; its text could not be read'} |\n"
        for w in WEIGHTS
    )
    head = (
        "| experiment | term | printed | source at uniform load, over ours | over layers | ours | "
        "source |\n"
    )
    return head + "|---|---|---|---|---|---|---|\n" + rows
