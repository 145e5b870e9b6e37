"""Parameters that several layers have in common lose the same channels in all of them."""

from __future__ import annotations

from torch import Tensor, nn

from search.networks.pruning.channels import Book, Side
from search.networks.pruning.flows import Ids


def unite(module: nn.Module, book: Book) -> None:
    """Notes that channels of layers with a common parameter can only be removed together.

    Args:
        module: Whose forward pass was followed.
        book: Where its channels are noted.
    """
    owners: dict[Tensor, list[tuple[str, nn.Module, str]]] = {}
    for name, layer in module.named_modules():
        for own, parameter in layer.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((name, layer, own))
    called = {name for name, _ in book.uses}
    for parameter, several in owners.items():
        if len(several) == 1:
            continue
        for axis in range(min(2, parameter.ndim)):
            uses = [_along(book, *one, axis) for one in several if one[0] in called]
            known = [ids for ids in uses if ids is not None]
            if len(known) == len(uses) and len({len(ids) for ids in known}) <= 1:
                for ids in known[1:]:
                    book.unite(known[0], ids)
            else:  # they cannot lose the same
                book.held.extend(known)


def _along(book: Book, name: str, layer: nn.Module, own: str, axis: int) -> Ids | None:
    """Returns the channels that lie along an axis of a layer's parameter; None if unknown."""
    outputs = 1 if isinstance(layer, nn.ConvTranspose2d) and own == "weight" else 0
    sides: tuple[Side, ...] = ("out", "through") if axis == outputs else ("in",)
    return next((book.uses[name, side][0] for side in sides if (name, side) in book.uses), None)


def keep(changed: nn.Module, whole: nn.Module) -> None:
    """Has layers of a changed copy share what they share in the whole network, in place."""
    first: dict[Tensor, Tensor] = {}
    for path, parameter in whole.named_parameters(remove_duplicate=False):
        tensor = changed.get_parameter(path)
        if first.setdefault(parameter, tensor) is not tensor:
            owner, _, name = path.rpartition(".")
            setattr(changed.get_submodule(owner), name, first[parameter])
