"""What an agent may answer, by request.

A device is another computer, and what it says is not trusted: every answer is checked here before
anything is computed from it. The module docstring of ``search.devices.agent`` lists requests and
answers.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from search.errors import StageFailed, printable

# The longest honest answer is a profile, about a kilobyte for every operator of a network.
LONGEST_BYTES = 1 << 23
MOST = 100_000  # entries of any list
LONGEST_WORD, LONGEST_REASON = 200, 400


def _word(text: str) -> str:
    return printable(text, LONGEST_WORD)


def _finite(lowest: float, highest: float) -> Any:
    return Field(ge=lowest, le=highest, allow_inf_nan=False)


Word = Annotated[str, AfterValidator(_word)]
Name = Annotated[str, AfterValidator(printable)]  # of a kernel, which exporters make long
# Bundles pin it in a file of requirements.
Version = Annotated[str, Field(pattern=r"\A[0-9][A-Za-z0-9.+_-]{0,49}\z")]
Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
# From a picosecond to some days: ratios and products of such times are finite.
Time = Annotated[float, _finite(1e-9, 1e9)]
Amount = Annotated[float, _finite(0, 1e15)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]
Extent = Annotated[int, Field(ge=-1, le=1 << 62)]
Flags = Annotated[list[Word], Field(max_length=64)]
Clock = Literal["processor", "wall"]
Runs = Annotated[int, Field(ge=1, le=1 << 31)]
Numbers = Annotated[list[Annotated[int, Field(ge=0, le=1 << 20)]], Field(max_length=4096)]


class Hello(TypedDict):
    """Of whatever version; only ours tells its process."""

    schema: int
    pid: NotRequired[Annotated[int, Field(gt=1, le=1 << 31)]]


class _Processor(TypedDict):
    arch: Word
    cpu: Word
    flags: Flags
    cpus: Numbers


class Described(_Processor):
    """What the device is."""

    usable_cores: Annotated[int, Field(ge=1, le=4096)]
    python: Version
    numpy: Version
    onnxruntime: Version


class Conditions(_Processor):
    """What others take of it."""

    stolen_ticks: Count
    throttled_us: Count


class Lock(TypedDict):
    """Whether the device is held, else by whom."""

    held: bool
    holder: Word


class _Options(TypedDict):
    intra_op_num_threads: Count
    inter_op_num_threads: Count
    execution_mode: Word
    graph_optimization_level: Word
    session_entries: Annotated[dict[Word, Word], Field(max_length=64)]


class Opened(TypedDict):
    """A model in its process."""

    cold_start_ms: Time
    run_ms: Time
    warm: bool
    clock: Clock
    options: _Options
    onnxruntime: Version
    model_sha256: Digest
    baseline_rss_bytes: Count


class _Energy(TypedDict):
    mj: Amount | None
    source: NotRequired[Word]
    reason: NotRequired[Word]


class Single(TypedDict):
    """Times of single runs."""

    times_ms: Annotated[list[Time], Field(min_length=1, max_length=MOST)]
    cpu_ms: Amount
    energy: _Energy
    peak_rss_bytes: Count


class Throughput(TypedDict):
    """None where it would have taken too long."""

    images_per_s: Annotated[float, _finite(1e-9, 1e15)] | None


class RoundsTold(TypedDict):
    """Times of candidate and reference in turns."""

    rounds: Annotated[
        list[Annotated[list[Time], Field(min_length=2, max_length=2)]], Field(max_length=MOST)
    ]
    disturbed: Annotated[list[bool], Field(max_length=MOST)]
    clock: Clock
    pieces: Runs
    runs: Annotated[list[Runs], Field(min_length=2, max_length=2)]
    order: Name


class Operators(TypedDict):
    """Executed kernels by type."""

    operators: Annotated[
        dict[Word, Annotated[int, Field(ge=0, le=1 << 31)]], Field(max_length=1000)
    ]


class _Kernel(TypedDict):
    name: Name
    operator: Word
    provider: Word
    microseconds: Annotated[float, _finite(0, 1e12)]
    inputs: Annotated[list[dict[Word, list[Extent]]], Field(max_length=1000)]
    outputs: Annotated[list[dict[Word, list[Extent]]], Field(max_length=1000)]


class KernelTimes(TypedDict):
    """Kernels of one run."""

    kernels: Annotated[list[_Kernel], Field(max_length=MOST)]


class Predicted(TypedDict):
    """The class of every image, by this version of the runtime."""

    classes: Annotated[list[Annotated[int, Field(ge=0, le=1 << 20)]], Field(max_length=MOST)]
    onnxruntime: Version


class Nothing(TypedDict):
    """Done."""


class Refusal(TypedDict):
    """Why not."""

    error: Annotated[str, AfterValidator(lambda text: printable(text, LONGEST_REASON))]
    kind: Word


ANSWERS: dict[str, TypeAdapter[Any]] = {
    "hello": TypeAdapter(Hello),
    "describe": TypeAdapter(Described),
    "conditions": TypeAdapter(Conditions),
    "lock": TypeAdapter(Lock),
    "start": TypeAdapter(Nothing),
    "open": TypeAdapter(Opened),
    "single": TypeAdapter(Single),
    "throughput": TypeAdapter(Throughput),
    "rounds": TypeAdapter(RoundsTold),
    "operators": TypeAdapter(Operators),
    "profile": TypeAdapter(KernelTimes),
    "predict": TypeAdapter(Predicted),
    "close": TypeAdapter(Nothing),
}
REFUSALS = TypeAdapter(Refusal)


class Denied(Exception):  # noqa: N818 - an agent's answer, not a fault of this program
    """The agent refuses; ``kind`` names the reason."""

    def __init__(self, error: str, kind: str) -> None:
        super().__init__(f"{error} ({kind})")
        self.kind = kind


def read_reply(line: bytes, request: dict[str, Any]) -> dict[str, Any]:
    """Reads an agent's answer; what was not asked for is left out.

    Args:
        line: As it came.
        request: What it answers.

    Raises:
        StageFailed: If it is no JSON, which means that something else than the agent wrote it, or
            not what the request asks for.
        Denied: If the agent refuses.
    """
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        raise _strange(request, f"is no JSON: {line[:80]!r}") from None
    if not isinstance(told, dict) or not isinstance(told.get("ok"), bool):
        raise _strange(request, f"does not say whether it is one: {line[:80]!r}")
    shape: TypeAdapter[Any] | None = ANSWERS.get(request["request"]) if told["ok"] else REFUSALS
    try:
        reply: dict[str, Any] = told if shape is None else shape.validate_python(told)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"][:5]))
        reason = printable(f"{where}: {fault['msg']}", LONGEST_WORD)
        raise _strange(request, f"is not what an agent says ({reason})") from None
    if not told["ok"]:
        raise Denied(reply["error"], reply["kind"])
    _check_amount(reply, request)
    return reply


def _check_amount(reply: dict[str, Any], request: dict[str, Any]) -> None:
    """Compares how much was told with how much was asked for."""
    match request["request"]:
        case "rounds":
            told, most = len(reply["rounds"]), request["count"]
            if not 0 < told <= most or len(reply["disturbed"]) != told:
                raise _strange(request, f"has {told} rounds, not 1 to {most}")
        case "predict" if len(reply["classes"]) != request["count"]:
            raise _strange(request, f"has {len(reply['classes'])} classes, not {request['count']}")
        case "single" if len(reply["times_ms"]) > request["count"]:
            raise _strange(request, f"has {len(reply['times_ms'])} runs, not {request['count']}")


def _strange(request: dict[str, Any], what: str) -> StageFailed:
    return StageFailed("measure", f"the agent's answer to {request['request']!r} {what}")
