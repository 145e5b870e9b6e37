"""Trains, prunes, distils, kills and resumes on a CUDA device, and prints what it took.

``make gpu``; never part of the gate. It takes under five minutes with its set-up. Elsewhere it says
in one line that there is no CUDA device. Needs nothing but Python at first: what the project
needs is installed into ``.venv-gpu``, where it is missing, beside a PyTorch that is there already.
``--device cpu`` rehearses it without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OWN = ROOT / ".venv-gpu"
PRECISIONS = ("float32", "bfloat16")
BUILT_IN = ("cnn", "resnet8", "ds_cnn")
# How they are trained is chosen by measuring, which takes half a minute where kernels are made.
CHOOSING = (*BUILT_IN, "resnet20_cifar10", "efficientnet")
STEPS = 8
BATCH = 64
# Of the weights after a few steps, from the CPU's, relative to what they learned: so much beyond
# twice what the CPU's own two memory layouts are apart. A deep network with random weights
# multiplies what is rounded, until its first steps go another way of the same length (1.4).
DISTANCE_TOLERANCE = {"float32": 0.2, "bfloat16": 0.7}
UNRELATED = 1.4
# Of the accuracy after a whole training.
ACCURACY_TOLERANCE = 0.05
STUDY = (
    "experiment=smoke",
    "study.n_trials=4",
    "train.teacher_epochs=6",
    "train.epochs=2.0",
    "device.budget_s=0.3",
    "space.threads=1",
    "policy.deployments=0",
    "finalists.count=1",
    "finalists.epochs=0.5",
    "finalists.budget_s=1.0",
)
STUDIES = (
    ("inline", "float32", ("engine=inline",)),
    ("2 workers", "bfloat16", ("engine=local", "engine.workers=2")),
)
STUDY_TIMEOUT_S = 200


def main() -> int:
    """Prepares, runs all parts, and returns how many went wrong, 1 at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    device = parser.parse_args().device
    started = time.monotonic()
    if device == "cuda" and not _has_device():
        print("no CUDA device here")
        return 0
    _install_missing()
    _install_published()
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print(f"no CUDA device here for PyTorch {torch.__version__}")
        return 0
    named = torch.cuda.get_device_name() if device == "cuda" else "cpu, as a rehearsal"
    cores = len(os.sched_getaffinity(0))
    print(f"{named}, PyTorch {torch.__version__}, {cores} cores")
    print(f"set up in {time.monotonic() - started:.0f} s", flush=True)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        _train_networks(device, Path(folder), faults)
        _search(device, Path(folder), faults)
    print(f"\n{time.monotonic() - started:.0f} s in all; {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return min(1, len(faults))


# ---- setting up


def _has_device() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()


def _install_missing() -> None:
    """Goes on in an environment that has what the project needs, made here if need be."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = [one for one in project["dependencies"] if not _is_installed(one)]
    if not missing:
        return
    if sys.prefix == str(OWN):
        raise SystemExit(f"{OWN} lacks {', '.join(missing)}: remove it and try again")
    # Python's own packages stay visible: PyTorch is large, and may be there.
    venv.create(OWN, system_site_packages=True, with_pip=True)
    pins = OWN / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins.write_text("\n".join(line for line in lines if not line.startswith("torch==")))
    python = str(OWN / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", pins, *missing], check=True)
    os.execv(python, [python, "-m", "tests.bench.gpu", *sys.argv[1:]])


def _install_published() -> None:
    """Makes pytorchcv importable, beside whatever environment this is, if it can be had."""
    sys.path.append(str(OWN / "published"))
    if importlib.util.find_spec("pytorchcv"):
        return
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (pin,) = (line for line in lines if line.startswith("pytorchcv=="))
    # Without torchvision, which it names: what is taken from it needs torch alone.
    target = ["--no-deps", "--target", str(OWN / "published")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *target, pin], check=False)
    importlib.invalidate_caches()


def _is_installed(requirement: str) -> bool:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    try:
        importlib.metadata.distribution(found[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def _noting(faults: list[str], what: str) -> Iterator[None]:
    """Goes on after a fault, and notes it."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        faults.append(f"{what}: {type(error).__name__}: {str(error).splitlines()[:1]}")


# ---- networks


def _train_networks(device: str, folder: Path, faults: list[str]) -> None:
    """Trains, prunes and distils each network here and there, and compares the students."""
    import torch

    from tests.bench import gpu_networks
    from tests.workbench import Workbench

    # TF32, in which convolutions are by default, has 10 bits: too few to compare with the CPU.
    torch.backends.cudnn.allow_tf32 = False
    bench = Workbench(folder / "store")
    if gpu_networks.left_out():
        print(f"\nleft out, for want of pytorchcv: {', '.join(gpu_networks.left_out())}")
    print(f"\nseconds of {STEPS} steps of {BATCH} images (whole trainings of the first three)")
    heads = ("choosing", "teacher", "cpu", *PRECISIONS)
    columns = "".join(f"{head:>10}" for head in heads)
    print(
        f"{'network':24}{columns}   accuracies; distances, of the CPU's layouts first; way chosen"
    )
    for name in (*BUILT_IN, *gpu_networks.names()):
        with _noting(faults, name):
            _train_network(bench, name, device, faults)


def _train_network(bench: Any, name: str, device: Any, faults: list[str]) -> None:
    from dataclasses import replace

    from search.records.network import NetworkSpec
    from search.records.placement import ChosenPlacement
    from search.records.steps.pruning import Prune
    from search.records.steps.training import ChoosePlacement

    is_built_in = name in BUILT_IN
    teach = bench.teach_step(name if is_built_in else "cnn")
    epochs = 3.0
    if not is_built_in:
        factory, arguments = "tests.bench.gpu_networks:build", (("name", name),)
        spec = NetworkSpec("custom", None, factory, arguments, "0" * 64, (1, 8, 8), 10)
        teach = replace(teach, spec=spec, epochs=1)
        epochs = STEPS * BATCH / bench.data.sizes[0]
    chosen = ChosenPlacement(device, "float32", "contiguous", 0.0)
    chosen_s = 0.0
    if name in CHOOSING:
        choose = ChoosePlacement(teach.spec, BATCH, device, "auto", device)
        chosen, chosen_s = _timed(partial(bench.do, choose))
    teach = replace(teach, device=device, layout=chosen.layout)
    teacher, taught_s = _timed(partial(bench.do, teach))
    pruned = bench.do(Prune(teacher.network, 0.5, 8)).network
    step = replace(
        bench.finetune_step("cnn"),
        start=pruned,
        teacher_logits=teacher.logits,
        batch_size=BATCH,
        epochs=epochs,
        optimizer="sgd",
        learning_rate=0.01,
        schedule="cosine",
        layout=chosen.layout,
    )
    wanted, cpu_s = _timed(partial(bench.do, step))
    another = bench.do(replace(step, layout=_other_layout(chosen.layout)))
    seconds = [chosen_s, taught_s, cpu_s]
    accuracies = [wanted.val_accuracy]
    distances = [_distance(*map(bench.weights, (pruned, wanted.network, another.network)))]
    notes: list[str] = []
    for precision in PRECISIONS:
        # In two rungs: the optimizer's state goes to the CPU and back.
        first = replace(step, device=device, precision=precision, end=0.5)
        begun, first_s = _timed(partial(bench.do, first))
        last = replace(first, start=begun.network, state=begun.state, begin=0.5, end=1.0)
        student, last_s = _timed(partial(bench.do, last))
        seconds.append(first_s + last_s)
        accuracies.append(student.val_accuracy)
        distances.append(_distance(*map(bench.weights, (pruned, wanted.network, student.network))))
        tolerance = DISTANCE_TOLERANCE[precision] + 2 * distances[0]
        if not is_built_in and tolerance >= UNRELATED:
            notes.append(f"{precision}: chaotic, not compared")
        elif not is_built_in and distances[-1] > tolerance:
            faults.append(
                f"{name}, {precision}: its weights are {distances[-1]:.2g} from the CPU's"
            )
        if is_built_in and abs(student.val_accuracy - wanted.val_accuracy) > ACCURACY_TOLERANCE:
            faults.append(f"{name}, {precision}: its accuracy is far from the CPU's")
        if student.network.shapes != wanted.network.shapes:
            faults.append(f"{name}, {precision}: it has another structure")
    told = " ".join(f"{one:.1%}" for one in accuracies)
    told += "; " + " ".join(f"{one:.2g}" for one in distances)
    told += "; ".join(["", f"{chosen.precision} {chosen.layout}", *notes])
    print(f"{name:24}" + "".join(f"{one:>10.2f}" for one in seconds) + f"   {told}", flush=True)


def _other_layout(layout: str) -> str:
    return "contiguous" if layout == "channels_last" else "channels_last"


def _distance(start: Any, wanted: Any, found: Any) -> float:
    """Returns how far a student's weights are from another's, relative to what that one learned."""
    learned = [name for name in wanted if not name.endswith(("running_mean", "running_var"))]
    learned = [name for name in learned if wanted[name].is_floating_point()]
    off = sum((found[name] - wanted[name]).square().sum() for name in learned)
    way = sum((wanted[name] - start[name]).square().sum() for name in learned)
    return float((off / way) ** 0.5)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


# ---- studies


def _search(device: str, folder: Path, faults: list[str]) -> None:
    """Searches, kills the search after its first pruned trial, and lets the command go on."""
    print(f"\n{'study':12}{'arithmetic':12}{'killed after':>14}{'ended after':>14}")
    for place, precision, engine in STUDIES:
        name = f"{place.replace(' ', '-')}-{precision}"
        with _noting(faults, f"study {name}"):
            given = (
                *STUDY,
                *engine,
                f"train.device={device}",
                f"train.precision={precision}",
                f"study.name={name}",
            )
            _, killed_s = _timed(partial(_kill_after_pruned_trial, folder, given))
            _, ended_s = _timed(partial(_finish, folder, given))
            print(f"{place:12}{precision:12}{killed_s:>12.0f} s{ended_s:>12.0f} s", flush=True)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _kill_after_pruned_trial(folder: Path, given: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "search.run", *given],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            # The uncompressed network comes first: it tells nothing of what training needs.
            if re.search(r"\btrial \d+ (complete|stopped): .*\bpruned [1-9]", line):
                return
        raise RuntimeError(f"it ended without a pruned trial: {' '.join(lines[-5:])}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _finish(folder: Path, given: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "search.run", *given],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=STUDY_TIMEOUT_S,
        check=False,
    )
    said = " ".join((ended.stdout + ended.stderr).split())
    if ended.returncode != 0:
        raise RuntimeError(f"status {ended.returncode}: {said[-800:]}")
    failed = re.findall(r"trial \d+ failed: [^;]*", said)
    if failed or "Traceback" in said:
        raise RuntimeError(f"{failed or said[-800:]}")


if __name__ == "__main__":
    sys.exit(main())
