"""What a layout promises of which one mixture of all experts computes a token,
not each of the token's experts.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from experts.contract import Experts


class Mixture(Experts):
    """Base of these layouts."""

    # whether the experts act on the attention of their block, too
    on_attention: bool = False
    # whether the gates weigh the outputs of whole models, each with one expert alone
    on_model: bool = False
    # the experts' names, where each can be learned alone and kept in a file of its own
    skills: Sequence[str] = ()

    def kind(self) -> dict[str, str]:
        """What a skill must have in common with this layout to be put into it, in words."""
        return {}

    @property
    def passes(self) -> int:
        """How often the networks that the experts act on are computed."""
        return 1

    def mixed(self, x: Tensor, gates: Tensor) -> Tensor:
        """All that tokens x (T, D) get under gates (T, E): (T, D)."""
        raise NotImplementedError

    def adapt(self, network: nn.Module) -> None:
        """Gives another network the experts of this layout, where they are `on_attention`."""
        raise NotImplementedError

    def under(self, gates: Tensor, network: nn.Module, *inputs: object) -> Tensor:
        """What a network that was adapted gives of its inputs, under gates (T, E)."""
        raise NotImplementedError
