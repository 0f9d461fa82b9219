"""What does each expert do? Measures of who works with whom, on what, and how alike the experts
are.

Pure functions of routings and weights; all but `typical_tokens` stay on the device.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from experts.contract import Stack
from routers.assignments import count, gates
from routers.contract import Routing


def load_by_label(routing: Routing, label: Tensor, num_labels: int) -> Tensor:
    """Assignments per label and expert (labels, E), of label (B, S);
    tokens with a negative one are not counted.
    """
    num_experts = routing.logits.size(1)
    of = label.flatten()[routing.token]  # (A,)
    uncounted = (routing.expert == num_experts) | (of < 0)
    index = (of * num_experts + routing.expert).masked_fill(uncounted, num_labels * num_experts)
    return count(index, num_labels * num_experts).view(num_labels, num_experts)


def chosen(routing: Routing) -> Tensor:
    """Which experts each token has (T, E) bool, before the drop; none on padding."""
    return gates(routing._replace(gate=torch.ones_like(routing.gate))) > 0


def first_choice(routing: Routing) -> Tensor:
    """The expert with the largest gate of each token (T,), -1 where it has none."""
    # a gate may be 0, or negative
    best = gates(routing).masked_fill(~chosen(routing), -torch.inf).max(-1)
    return best.indices.masked_fill(best.values == -torch.inf, -1)


def tokens_by_k(routing: Routing) -> Tensor:
    """How many real tokens have 0, 1, ..., E experts: (E + 1,) float32."""
    k = chosen(routing).sum(-1)
    padding = routing.logits.size(1) + 1
    return count(k.masked_fill(~routing.valid.flatten(), padding), padding)


def quantile_of_counts(counts: Tensor, q: float) -> Tensor:
    """The smallest value v with at least a share q of the counts (..., V) at 0..v: (...,)."""
    share = counts.double().cumsum(-1) / counts.sum(-1, keepdim=True).clamp_min(1)
    return (share < q - 1e-9).sum(-1)


def co_activation(routing: Routing) -> Tensor:
    """How many tokens have both experts (E, E); the diagonal is the load."""
    have = chosen(routing).float()
    return have.T @ have


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information in nats of the two labels of the counts joint (..., X, Y): (...,)."""
    p = joint.double() / joint.sum((-2, -1), keepdim=True).clamp_min(1e-20)
    independent = p.sum(-1, keepdim=True) * p.sum(-2, keepdim=True)
    return torch.xlogy(p, p / independent.clamp_min(1e-300)).sum((-2, -1))


def joint_choice(below: Tensor, above: Tensor, num_experts: int) -> Tensor:
    """How many tokens have this first choice in one layer and that one in the other (E, E),
    of first choices (T,).
    """
    uncounted = (below < 0) | (above < 0)
    index = (below * num_experts + above).masked_fill(uncounted, num_experts**2)
    return count(index, num_experts**2).view(num_experts, num_experts)


def rmoe_information(below: Routing, above: Routing, bins: int = 100) -> Tensor:
    """RMoE's mutual information of two layers in nats, its sum over the real tokens, a scalar.

    The samples are the *experts of one token*, not tokens: their probabilities in either layer are
    put into the bins of linspace(0, 1, 100), and the information of the two bins is taken over the
    E experts. It rises with the number of occupied bins. Qiu et al. 2024, arXiv 2408.06793,
    appendix A.4.2.
    """
    same_below = _same_bin(below, bins)
    same_above = _same_bin(above, bins)
    joint_entropy = _label_entropy(same_below & same_above)
    information = _label_entropy(same_below) + _label_entropy(same_above) - joint_entropy  # (T,)
    return (information * below.valid.flatten()).sum()


def _same_bin(routing: Routing, bins: int) -> Tensor:
    """Which pairs of experts have probabilities in one bin (T, E, E)."""
    edges = torch.linspace(0, 1, bins, dtype=torch.float64, device=routing.logits.device)
    label = torch.bucketize(routing.probabilities.double(), edges, right=True)  # (T, E)
    return label[:, :, None] == label[:, None, :]


def _label_entropy(same: Tensor) -> Tensor:
    """Entropy in nats of labels over E samples, of which samples share theirs (T, E, E): (T,)."""
    return -(same.double().mean(-1)).log().mean(-1)


def weight_similarity(experts: nn.Module) -> Tensor | None:
    """How alike the experts of a layer are, a scalar: 1 for equal ones, 0 for orthogonal ones; None
    for fewer than two.

    Each weight matrix is averaged over the width F, normalised, and compared between experts: the
    mean over the pairs of different experts and the three matrices. RMoE's figure (arXiv
    2408.06793, appendix A.4.3) sums the matrices and counts every expert with itself, so it is 3
    for equal experts and 3/E for orthogonal ones; this is rescaled.
    """
    similar = weight_similarities(experts)
    if similar is None or len(similar) < 2:
        return None
    return (similar.sum() - similar.trace()) / (len(similar) * (len(similar) - 1))


def weight_similarities(experts: nn.Module) -> Tensor | None:
    """The same of every two experts (E, E), 1 on the diagonal;
    None without experts that compute.
    """
    by_stack = [_pieces(stack) for stack in _stacks(experts)]
    if not by_stack:
        return None
    similarities = []
    for parts in zip(*by_stack, strict=True):
        piece = torch.cat(parts)  # (E, D): one of the matrices, of all experts
        similarities.append(piece @ piece.T)
    return torch.stack(similarities).mean(0)


def expert_norms(experts: nn.Module) -> Tensor:
    """Frobenius norm of both matrices of each expert together (E,),
    of a layer with experts that compute.
    """
    norms = []
    for stack in _stacks(experts):
        w_in, w_out = _weights(stack)
        norms.append(torch.cat([w_in.flatten(1), w_out.flatten(1)], 1).norm(dim=1))
    return torch.cat(norms)


def stable_ranks(experts: nn.Module) -> Tensor:
    """|W|_F^2 / |W|_2^2 of each expert's output matrix (E,): at least 1, at most its rank."""
    return torch.cat([_stable_rank(_weights(stack)[1]) for stack in _stacks(experts)])


def _stable_rank(matrices: Tensor) -> Tensor:
    frobenius = matrices.flatten(1).square().sum(1)
    spectral = torch.linalg.matrix_norm(matrices, 2).square()
    return frobenius / spectral.clamp_min(1e-30)


def _stacks(experts: nn.Module) -> list[Stack]:
    return [module for module in experts.modules() if isinstance(module, Stack)]


def _weights(stack: Stack) -> tuple[Tensor, Tensor]:
    """Both matrices of all experts, of all processes."""
    return _whole(stack.w_in), _whole(stack.w_out)


def _whole(weight: Tensor) -> Tensor:
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return whole.detach().float()


def _pieces(stack: Stack) -> list[Tensor]:
    """Each matrix of all experts, averaged over the width and normalised (E, D)."""
    w_in, w_out = _weights(stack)
    means = [matrix.mean(-1) for matrix in w_in.chunk(stack.activation.columns, -1)]
    means.append(w_out.mean(-2))
    return [functional.normalize(mean, dim=-1) for mean in means]


def typical_tokens(have: Tensor, tokens: Tensor, number: int) -> list[list[int]]:
    """The places of the most typical tokens of every expert, most typical first; one place a token
    id.

    Typical is what the expert has often and more often than others: n log(n / expected), where n
    counts the occurrences of a token id at the expert and `expected` is what an expert that does
    not choose would have.

    Args:
        have: (T, E) bool.
        tokens: (T,) int64.
        number: of tokens an expert.
    """
    ids, id_of_token, times = tokens.unique(return_inverse=True, return_counts=True)
    counts = have.new_zeros(len(ids), have.size(1), dtype=torch.float64)  # (U, E)
    counts.index_add_(0, id_of_token, have.double())
    expected = times[:, None] * have.double().mean(0)
    weight = torch.xlogy(counts, counts / expected.clamp_min(1e-12))
    best = weight.topk(min(number, len(ids)), 0)
    places: list[list[int]] = []
    for expert in range(have.size(1)):
        # What an expert has less often than others is not typical of it.
        typical = best.indices[:, expert][best.values[:, expert] > 0]
        places.append([_first_place(have[:, expert], id_of_token, each) for each in typical])
    return places


def _first_place(has: Tensor, id_of_token: Tensor, unique: Tensor) -> int:
    """The first token with this id that the expert has."""
    return int((has & (id_of_token == unique)).nonzero()[0])
