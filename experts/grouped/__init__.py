"""The grouped computation: route rows to experts, compute every SwiGLU expert, add the results up
per token.

    plan     which row of the expert-sorted layout holds which assignment
    dispatch x (T, D)  -> rows (R, D), sorted by expert; those of expert e end at ends[e]
    scale    rows (R, D) -> (R, D), each times the gate of its assignment
    swiglu   rows (R, D) -> y (R, D),  y = (silu(x W_gate) * (x W_up)) W_out
    product  rows (R, D) -> (R, N), row times the matrix of its expert
    combine  y (R, D)  -> (T, D), the sum of gate * y over the assignments of a token

Rows after `ends[-1]` belong to no expert: the kernels return zeros for them, and a zero gradient.
The kernel for bfloat16 on CUDA is in `grouped_mm`, the one for all else in `bmm`.
"""

from experts.grouped.kernel import product, swiglu
from experts.grouped.permutation import combine, dispatch, scale
from experts.grouped.planning import Plan, plan, rows_worth_a_product

__all__ = [
    "Plan",
    "combine",
    "dispatch",
    "plan",
    "product",
    "rows_worth_a_product",
    "scale",
    "swiglu",
]
