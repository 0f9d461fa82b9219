"""Models that are built without their matrices: each rank fills the parts that it keeps, so none
ever holds the whole.

A matrix is drawn alone, whole, and cut; its numbers are those of a model that was built whole, to
the last bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from app.model.transformer import Transformer


# TorchDispatchMode is documented by torch, though its module has an underscore: no other hook sees
# the operations that fill a tensor.
class Draw(NamedTuple):
    """How the numbers of a matrix were drawn last."""

    state: Tensor  # of the generator, before
    function: Callable[..., Tensor]
    arguments: tuple[object, ...]

    def again(self, shape: torch.Size) -> Tensor:
        """The same numbers."""
        torch.set_rng_state(self.state)
        return self.function(torch.empty(shape, device="cpu"), *self.arguments)


class Given(NamedTuple):
    """A matrix that is not drawn."""

    numbers: Tensor

    def again(self, shape: torch.Size) -> Tensor:
        """Its numbers."""
        return self.numbers


def unfilled(build: Callable[[], Transformer]) -> tuple[Transformer, dict[str, Draw | Given]]:
    """What `build` returns, its matrices on the meta device,
    and how each of them is drawn, by name.
    """
    made: list[Tensor] = []
    with torch.device("meta"), _registering(made.append):
        matrices = {*build().matrices()}
    # a second time they are made in the same order
    left_out = iter([parameter in matrices for parameter in made])
    draws = Draws()
    before = torch.get_rng_state()
    with (
        draws,
        _registering(lambda parameter: draws.leave_out(parameter) if next(left_out) else None),
    ):
        model = build()
    bare = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta}
    # a weight was made of a matrix: its layout needs numbers
    if not draws.last.keys() >= {*bare.values()}:
        torch.set_rng_state(before)
        return build(), {}
    return model, {name: draws.last[parameter] for name, parameter in bare.items()}


def fill(model: nn.Module, draws: dict[str, Draw | Given]) -> None:
    """Draws the matrices of a model that was split after it was built;
    the generator is afterwards where it was.
    """
    # a weight may have two names
    filled: dict[Tensor, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):
        for name, draw in draws.items():
            matrix = model.get_parameter(name)
            if matrix not in filled:
                filled[matrix] = nn.Parameter(
                    _part(draw.again(matrix.shape), matrix), matrix.requires_grad
                )
            model.load_state_dict({name: filled[matrix]}, strict=False, assign=True)


def _part(whole: Tensor, matrix: Tensor) -> Tensor:
    """What this rank keeps of it, in memory of its own."""
    assert isinstance(matrix, DTensor)
    return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)


class Draws(TorchDispatchMode):
    """Draws for parameters that are left out, too,
    so that whatever is drawn next is what it always is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bare: set[Tensor] = set()  # what was left out
        self.last: dict[Tensor, Draw] = {}

    def leave_out(self, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter without memory for one that a module has just made."""
        # which has it from another module
        if parameter in self.bare:
            return parameter
        bare = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        self.bare.add(bare)
        return bare

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        drawing = torch.Tag.nondeterministic_seeded in func.tags and func._schema.is_mutable
        if not drawing or args[0] not in self.bare:
            return func(*args, **kwargs or {})
        self.last[args[0]] = Draw(torch.get_rng_state(), func, args[1:])
        func(torch.empty(args[0].shape, device="cpu"), *args[1:])
        return args[0]


@contextmanager
def _registering(change: Callable[[nn.Parameter], nn.Parameter | None]) -> Iterator[None]:
    """Calls `change` with every parameter that a module is given;
    what it returns takes its place.
    """

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else change(parameter)

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]  # it may return one
    try:
        yield
    finally:
        handle.remove()
