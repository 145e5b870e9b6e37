"""onnxruntime on the processor."""

from __future__ import annotations

from search.records.deployable import Format
from search.runtimes import Runtime
from search.space.dimension import Dimension
from search.space.domains import Choice, Range

FORMATS = {
    32: Format("float", 32, "float"),
    16: Format("16-bit weights", 16, "float"),
    8: Format("8 bits", 8, "integers"),
    4: Format("4-bit weights", 4, "float"),
}
BITS = Dimension(
    name="bits",
    group="deployment",
    domain=lambda cores: Choice(tuple(FORMATS)),
    sound=32,
    label="bits",
    phrase="{} bits",
)
THREADS = Dimension(
    name="threads",
    group="deployment",
    domain=lambda cores: Range(1, cores, whole=True, counts_cores=True),
    sound=1,
    label="threads",
    phrase="{} thread{s}",
)
RUNTIME = Runtime(
    name="onnxruntime",
    dimensions=(BITS, THREADS),
    formats=FORMATS,
    converter="search.runtimes.quantization:convert",
    # After its optimisation of the graph.
    integer_operators=frozenset(
        {
            "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
            "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
        }
    ),
    float_operators=frozenset(
        {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    ),
)  # fmt: skip
