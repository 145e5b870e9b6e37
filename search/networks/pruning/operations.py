"""What the operations in autograd's graph do with a tensor's axes.

An operation that nothing here names may do anything with its numbers.
"""

from __future__ import annotations

import re
from typing import Any

from torch.autograd.function import BackwardCFunction

Shape = tuple[int, ...]

# Names of autograd's nodes, without their endings.
RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Clone", "Alias"}
MOVES = {"Permute", "Transpose", "T"}
REDUCTIONS = {
    "Mean", "Sum", "Max", "Min", "Amax", "Amin", "Var", "Std", "VarMean", "StdMean", "Logsumexp",
    "LinalgVectorNorm", "Norm",
}  # fmt: skip
# Every number of the result comes from those at the same place; shapes that differ are broadcast.
ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Add", "Addcdiv", "Addcmul", "Asin", "Asinh", "Atan", "Atan2", "Atanh",
    "Ceil", "Celu", "Clamp", "ClampMax", "ClampMin", "Copysign", "Cos", "Cosh", "Div", "Elu",
    "Erf", "Erfc", "Exp", "Exp2", "Expm1", "FakeQuantizePerTensorAffineCachemask", "Floor", "Fmax",
    "Fmin", "Fmod", "Frac", "Gelu", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Hypot",
    "LeakyRelu", "Lerp", "Log", "Log10", "Log1P", "Log2", "LogSigmoid", "Logaddexp",
    "Logaddexp2", "Logit", "MaskedFill", "Maximum", "Minimum", "Mish", "Mul", "NanToNum",
    "NativeDropout", "Neg", "Pow", "PreluKernel", "Reciprocal", "Relu", "Remainder", "Round",
    "RreluWithNoise", "Rsqrt", "Rsub", "Sgn", "Sigmoid", "Sign", "Silu", "Sin", "Sinc", "Sinh",
    "Softplus", "Softshrink", "Sqrt", "Sub", "Tan", "Tanh", "Threshold", "ToCopy", "Trunc",
    "Where", "Xlogy",
}  # fmt: skip
# Parts along one axis: if they are as long as the whole, they are the whole.
PARTS = {"Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes", "Slice"}
# These move or mix numbers, but along one axis only.
ALONG = {"Softmax", "LogSoftmax", "SafeSoftmax", "IndexSelect", "Flip"}
# These work on as many of the last axes as their names say.
SLIDING = re.compile(r"(?:Pool|Unpool|Pad|Upsample[A-Za-z]*)([123])D")


def kind_of(node: Any) -> str:
    """Returns a node's name without its endings."""
    name: str = node.name()
    return name.rstrip("0123456789").removesuffix("Backward")


def is_foreign(node: Any) -> bool:
    """Tells functions of the user's, of which nobody knows what they compute."""
    return isinstance(node, BackwardCFunction) or node.name().startswith("torch::jit")


def shape_of(node: Any, number: int) -> Shape | None:
    """Returns the shape of what a node made; None where it needs no gradient."""
    if node is None:
        return None
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[number].shape)


def dims(node: Any, ndim: int) -> tuple[int, ...]:
    """Returns the axes that an operation works along; none where it works on all."""
    saved = getattr(node, "_saved_dim", getattr(node, "_saved_dims", None))
    if saved is None:
        return ()
    several = saved if isinstance(saved, tuple) else (saved,)
    return tuple(_signed(dim) % ndim for dim in several)


def order_after(node: Any, ndim: int) -> list[int]:
    """Returns for every axis of the result of one of ``MOVES`` the axis that it was."""
    order = list(range(ndim))
    kind = kind_of(node)
    if kind == "Permute":
        return [_signed(dim) % ndim for dim in node._saved_dims]
    one, other = 0, 1
    if kind == "Transpose":
        one, other = (_signed(dim) % ndim for dim in (node._saved_dim0, node._saved_dim1))
    order[one], order[other] = order[other], order[one]
    return order


def keeps(node: Any, axis: int, given: Shape, made: Shape) -> bool:
    """Tells operations on one tensor that leave what lies along ``axis`` where it is.

    The user's own functions are believed to: trying them shows whether they do.

    Args:
        node: In autograd's graph.
        axis: Of the tensor.
        given: Its shape.
        made: The result's shape.
    """
    kind, ndim = kind_of(node), len(given)
    if ndim != len(made) or given[: axis + 1] != made[: axis + 1]:
        return False
    if kind in ELEMENTWISE or kind == "Repeat" or is_foreign(node):
        return True
    if kind in PARTS:
        return True
    if kind in ALONG:
        along = dims(node, ndim)
        return bool(along) and axis not in along
    if kind == "ConstantPadNd":  # may take away at one end what it adds at the other
        after = 2 * (ndim - 1 - axis)
        return not any(node._saved_pad[after : after + 2])
    slides = SLIDING.search(kind)
    return slides is not None and axis < ndim - int(slides[1])


def _signed(dim: int) -> int:
    """Returns an axis as it was given: negative ones are saved as their bits without a sign."""
    return dim if dim < 2**63 else dim - 2**64
