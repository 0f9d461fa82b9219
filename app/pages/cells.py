"""The numbers that papers print, against our budgets of their models.

A cell is reproduced if it differs by at most 0.1 %, or has the digits that are printed.
Conventions: `app.cost.budget`.
"""

from dataclasses import dataclass
from functools import cache

from app.config.compose import composed
from app.cost.budget import CONVENTIONS, Budget, Convention, on_meta

UNITS = {"T": 1e12, "B": 1e9, "M": 1e6, "": 1.0}
QUANTITIES = {
    "FLOPs per sequence": lambda b: b.flops_per_sequence_train,
    "total": lambda b: b.total_params,
    "active": lambda b: b.active_params,
    "total without routers": lambda b: b.total_params - b.router_params,
    "active without routers": lambda b: b.active_params - b.router_params,
    "non-embedding": lambda b: b.total_params - 2 * b.embedding_params,
    "active non-embedding": lambda b: b.active_params - 2 * b.embedding_params,
    "feed-forward": lambda b: b.ffn_params,
    "active feed-forward": lambda b: b.active_ffn_params,
    "router": lambda b: b.router_params,
}


@dataclass(frozen=True)
class Cell:
    """One number: of which experiment, what, as printed (with its unit), counted how."""

    experiment: str
    quantity: str
    printed: str
    convention: Convention = "real"
    # the paper cuts digits off instead of rounding
    cut_off: bool = False
    # the cell is the difference to this experiment
    minus: str | None = None
    # why the number does not come out
    why_not: str | None = None

    @property
    def value(self) -> float:
        """What our config gives."""
        return self._of(self.experiment) - (self._of(self.minus) if self.minus else 0)

    @property
    def target(self) -> float:
        """What is printed."""
        number, unit = self.parts()
        return float(number) * UNITS[unit]

    @property
    def reproduced(self) -> bool:
        """Within 0.1 %, or of the printed digits when rounded (or cut off,
        where the paper does that).
        """
        number, unit = self.parts()
        last = 10.0 ** -len(number.partition(".")[2]) * UNITS[unit]
        low, high = (0.0, last) if self.cut_off else (-last / 2, last / 2)
        over = self.value - self.target
        return abs(over) <= 1e-3 * self.target or low <= over <= high

    def _of(self, experiment: str) -> float:
        return QUANTITIES[self.quantity](counted(experiment)[self.convention])

    def parts(self) -> tuple[str, str]:
        unit = self.printed[-1] if self.printed[-1] in UNITS else ""
        return self.printed.removesuffix(unit).replace(",", ""), unit


@cache
def counted(experiment: str) -> dict[str, Budget]:
    """The budgets of `experiment=paper/EXPERIMENT` by convention."""
    config = composed([f"experiment=paper/{experiment}"])
    model = on_meta(config)
    return {
        convention: Budget.of(model, config["data"]["seq_len"], convention)
        for convention in CONVENTIONS
    }


def _table(quantity: str, convention: Convention, **cells: str) -> list[Cell]:
    return [Cell(name, quantity, printed, convention) for name, printed in cells.items()]


FLOPS = "FLOPs per sequence"
DEEPSEEK = [
    *_table(
        FLOPS,
        "paper",
        deepseekmoe_2b_dense="2.9T",
        deepseekmoe_2b_hash="2.9T",
        deepseekmoe_2b_switch="2.9T",
    ),
    *_table(
        FLOPS,
        "paper",
        deepseekmoe_2b_gshard="4.3T",
        deepseekmoe_2b="4.3T",
        deepseekmoe_2b_gshard_x1_5="5.8T",
    ),
    *_table(FLOPS, "paper", deepseekmoe_2b_dense_x16="24.6T"),
    *_table(FLOPS, "paper", deepseekmoe_16b="74.4T", deepseek_7b="183.5T", llama2_7b="187.9T"),
    *_table(FLOPS, "paper", gshard_137b="572.7T", deepseek_67b="2057.5T"),
    *_table(FLOPS, "paper_real", deepseekmoe_145b="585.6T", deepseekmoe_142b_half="374.6T"),
    *_table("feed-forward", "paper", deepseekmoe_2b="1.89B", deepseekmoe_2b_gshard_x1_2="2.3B"),
    *_table(
        "feed-forward", "paper", deepseekmoe_2b_gshard_x1_5="2.83B", deepseekmoe_2b_dense_x4="0.47B"
    ),
    *_table("feed-forward", "paper", deepseekmoe_2b_dense_x16="1.89B"),
    *_table(
        "active feed-forward", "paper", deepseekmoe_2b="0.24B", deepseekmoe_2b_gshard_x1_2="0.28B"
    ),
    *_table(
        "active feed-forward",
        "paper",
        deepseekmoe_2b_gshard_x1_5="0.35B",
        deepseekmoe_2b_dense_x4="0.47B",
    ),
    *_table("active feed-forward", "paper", deepseekmoe_2b_dense_x16="1.89B"),
    *_table(
        "total",
        "real",
        deepseekmoe_2b="2.0B",
        deepseekmoe_2b_hash="2.0B",
        deepseekmoe_2b_switch="2.0B",
    ),
    *_table("total", "real", deepseekmoe_2b_gshard="2.0B", deepseekmoe_2b_dense="0.2B"),
    *_table(
        "active",
        "real",
        deepseekmoe_2b="0.3B",
        deepseekmoe_2b_gshard="0.3B",
        deepseekmoe_2b_switch="0.2B",
    ),
    *_table(
        "total",
        "real",
        deepseekmoe_16b="16.4B",
        deepseekmoe_145b="144.6B",
        deepseekmoe_142b_half="142.3B",
    ),
    *_table("active", "real", deepseekmoe_16b="2.8B", deepseekmoe_145b="22.2B"),
    *_table("total", "real", gshard_137b="137B"),
]
OTHERS = [
    *_table("total", "real", mixtral_8x7b="46.7B", olmoe_1b_7b="6.9B", qwen3_30b_a3b="30.5B"),
    *_table("active", "real", mixtral_8x7b="12.9B", olmoe_1b_7b="1.3B"),
    Cell("qwen3_30b_a3b", "active", "3.3B", cut_off=True),
    *_table("total without routers", "real", dynamic_moe="3.5B", dynamic_moe_dense_374m="374M"),
    *_table(
        "total without routers", "real", dynamic_moe_dense_570m="570M", dynamic_moe_top1="3.5B"
    ),
    *_table("active without routers", "real", dynamic_moe_top1="374M", dynamic_moe_top2="581M"),
    *_table("router", "real", rmoe_enwik8_medium="475,904", rmoe_enwik8_medium_mlp="0.75M"),
    Cell("rmoe_enwik8_medium", "router", "0.47M", cut_off=True),
    Cell("rmoe_enwik8_medium_smoe", "router", "0.04M", cut_off=True),
    Cell("rmoe_enwik8_medium_cosine", "router", "0.04M", cut_off=True),
    Cell("rmoe_enwik8_medium", "total", "0.43M", minus="rmoe_enwik8_medium_smoe"),
    Cell("rmoe_0_91b", "total", "3.6M", minus="rmoe_0_91b_smoe"),
]
CELLS = DEEPSEEK + OTHERS

POST_NORM = (
    "the paper's model is post-norm with relative positions and ReLU experts of two matrices and "
    "biases"
)
ITS_CODE = "the paper's code registers an unused linear gate beside the cosine one"
FIXED = "a fixed network or matrix is not a parameter here"
TWO_MATRICES = (
    "total and active differ by 12 experts of two matrices of width 448 in each layer, not of "
    "SwiGLU's three"
)
MLA = "multi-head latent attention is not built here"
NOT_REPRODUCED = [
    Cell(
        "deepseekmoe_142b_half",
        "active",
        "12.2B",
        why_not="no convention gives it; 8 of 130 experts are active",
    ),
    Cell("rmoe_enwik8_medium", "total", "36.51M", why_not=POST_NORM),
    Cell("rmoe_enwik8_medium_smoe", "total", "36.08M", why_not=POST_NORM),
    Cell("rmoe_enwik8_small", "total", "15.3M", why_not=POST_NORM),
    Cell("rmoe_enwik8_medium_xmoe", "router", "0.09M", why_not=ITS_CODE),
    Cell("rmoe_enwik8_medium_hyper", "router", "12.4M", why_not=FIXED),
    Cell("rmoe_enwik8_medium_random", "router", "0.04M", why_not=FIXED),
    Cell("rmoe_0_91b_smoe", "total", "0.91B", why_not=TWO_MATRICES),
    Cell("rmoe_0_91b_smoe", "non-embedding", "664M", why_not=TWO_MATRICES),
    Cell("rmoe_0_91b_smoe", "active non-embedding", "334M", why_not=TWO_MATRICES),
    Cell("deepseek_v2", "total", "236B", why_not=MLA),
    Cell("deepseek_v2_lite", "total", "15.7B", why_not=MLA),
    Cell("deepseek_v3", "active", "37B", why_not=MLA),
]


def markdown() -> str:
    """The tables for docs/cells.md."""
    head = "| experiment | quantity | printed | ours | difference | convention |"
    lines = [f"{head}\n|---|---|---|---|---|---|"]
    lines += [_row(cell) + f" {cell.convention} |" for cell in CELLS]
    lines += [
        "\n## Not reproducible\n\n"
        + head.replace("convention", "why")
        + "\n|---|---|---|---|---|---|"
    ]
    lines += [_row(cell) + f" {cell.why_not} |" for cell in NOT_REPRODUCED]
    return "\n".join(lines) + "\n"


def _row(cell: Cell) -> str:
    name = cell.experiment if cell.minus is None else f"{cell.experiment} - {cell.minus}"
    unit = UNITS[cell.parts()[1]]
    ours = f"{cell.value:,.0f}" if unit == 1 else f"{cell.value / unit:,.4g}{cell.parts()[1]}"
    return (
        f"| {name} | {cell.quantity} | {cell.printed} | {ours} | "
        f"{cell.value / cell.target - 1:+.2%} |"
    )
