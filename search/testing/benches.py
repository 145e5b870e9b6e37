"""A bench to hold things to contracts on, made up without a device or images."""

from __future__ import annotations

from search.config.data import DigitsConfig
from search.config.device import LocalDeviceConfig
from search.config.study import ObjectiveConfig
from search.config.train import TrainConfig
from search.records.bench import Bench
from search.records.data import Dataset
from search.records.device import DeviceProfile
from search.records.network import NetworkSpec

DEVICE = DeviceProfile("local", "a CPU", "x86_64", ("avx2",), 2, "onnxruntime 1", 8, "u8s8")
MEASURING = LocalDeviceConfig(
    name="local",
    batch_size=1,
    throughput_batch_size=4,
    budget_s=1.0,
    timeout_s=60.0,
    spinning=False,
    memory_limit_bytes=None,
    canary_every=10,
    probe=False,
)
TRAIN = TrainConfig(
    device="cpu",
    precision="float32",
    batch_size=10,
    epochs=1.0,
    rungs=(0.5, 1.0),
    weight_decay=0.0,
    teacher_epochs=1,
    teacher_learning_rate=0.01,
    teacher_weight_decay=0.0,
    calibration_images=8,
)
LIMITS = ObjectiveConfig(
    names=("accuracy", "latency"),
    min_accuracy_share=0.5,
    max_accuracy_drop=None,
    max_latency_ms=None,
    max_size_bytes=None,
    max_memory_bytes=None,
)


def make_bench(spec: NetworkSpec) -> Bench:
    """Returns what all trials on a network share, with data of its shape that nobody can read."""
    data = Dataset(
        config=DigitsConfig(
            name="digits", validation_share=0.2, mean=None, std=None, memory_limit_bytes=0
        ),
        fingerprint="data",
        image_shape=spec.image_shape,
        labels=tuple(str(number) for number in range(spec.classes)),
        mean=(0.5,) * spec.image_shape[0],
        std=(0.25,) * spec.image_shape[0],
        sizes=(100, 20, 30),
        chances=(1 / spec.classes,) * 3,
    )
    return Bench(
        spec=spec,
        checkpoint=None,
        data=data,
        device=DEVICE,
        thread_counts=(1, 2),
        measuring=MEASURING,
        train=TRAIN,
        limits=LIMITS,
        machine="a CPU, 2 cores",
        seed=0,
    )
