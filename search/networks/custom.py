"""Calls a user's function that builds a network, and tries what it gives before anything trains."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from search.config.factory import contained, load_factory
from search.errors import ConfigError, SearchError, one_line, raised_at
from search.records.network import NetworkSpec

log = logging.getLogger(__name__)

R = TypeVar("R")

TELL_S = 10.0  # of silence, then twice as long, and so on
FORWARD_LIMIT_S = 300.0  # of a forward pass of two images; the slowest networks take seconds
SEED = 0
TRIED_IMAGES = 2  # batch normalisation of one pixel needs more than one image


def build_custom(spec: NetworkSpec) -> nn.Module:
    """Calls the factory of ``spec`` and returns its network, in evaluation mode.

    Raises:
        ConfigError: When the factory does not work, or its network does not suit the data.
    """
    assert spec.factory is not None
    origin = f"model.factory={spec.factory!r}"
    factory = load_factory(spec.factory, "model.factory")
    with torch.random.fork_rng(devices=[]):
        # Fixed, so that every process has the same network.
        torch.manual_seed(SEED)
        with contained(origin), _telling(f"{origin} to return"):
            module = _call(factory, dict(spec.arguments), origin)
        _make_trainable(module)
        with contained(origin), _telling(f"the first forward pass of {origin}"):
            _within_limit(lambda: _try(module, spec, origin), origin)
    for parameter in module.parameters():
        # Whatever its author froze it for: here every weight recovers from what pruning takes away.
        parameter.requires_grad_(parameter.is_floating_point())
    return module


def _call(factory: Callable[..., Any], arguments: dict[str, Any], origin: str) -> nn.Module:
    """Calls the user's function."""
    try:
        module = factory(**arguments)
    except SearchError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{origin}: called with model.arguments={arguments} it raised {one_line(error)}"
            f"{raised_at(error)}; correct the function or model.arguments"
        ) from error
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(
            f"{origin}: returned {type(module).__name__}, whose layers cannot be pruned; return "
            "the torch.nn.Module that it was compiled from"
        )
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{origin}: returned {type(module).__name__}; return a torch.nn.Module")
    return module


def _make_trainable(module: nn.Module) -> None:
    """Replaces tensors from ``torch.inference_mode``, which cannot be trained, by copies.

    What layers share they share afterwards too.
    """
    copies: dict[int, Tensor] = {}
    for layer in module.modules():
        named = {**vars(layer), **layer._parameters, **layer._buffers}
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor) or is_lazy(tensor) or not tensor.is_inference():
                continue
            if id(tensor) not in copies:
                copy = tensor.detach().clone()
                is_weight = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_weight else copy
            setattr(layer, name, copies[id(tensor)])


# ---- trying the network


def _try(module: nn.Module, spec: NetworkSpec, origin: str) -> None:
    """Runs a network in both modes: it must take the data's images and give its classes."""
    images = torch.rand(TRIED_IMAGES, *spec.image_shape)
    wrong = _find_wrong(_answer(module.eval(), images, origin), spec.classes)
    if wrong is not None:
        raise ConfigError(f"{origin}: the network gives {wrong}")
    wrong = _find_wrong(_answer_in_training(module, images, origin), spec.classes)
    if wrong is None:
        return
    # GoogLeNet and Inception give the logits of their side heads too while they are trained. The
    # side heads are no part of what is deployed, and would not be pruned along.
    module.register_forward_pre_hook(_stay_in_evaluation)
    if _find_wrong(_answer_in_training(module, images, origin), spec.classes) is not None:
        raise ConfigError(
            f"{origin}: in training mode the network gives {wrong}, as it does not in evaluation"
        )
    given = wrong.partition(";")[0]
    log.info("%s: gives %s in training mode: it is trained as in evaluation", origin, given)


def _stay_in_evaluation(module: nn.Module, _: Any) -> None:
    """Keeps a network itself, but none of its layers, from knowing that it is trained."""
    if module.training:
        module.training = False


def _answer(module: nn.Module, images: Tensor, origin: str) -> Any:
    try:
        with torch.no_grad():
            return module(images)
    except (Exception, SystemExit) as error:
        shape = ", ".join(map(str, images.shape[1:]))
        mode = " in training mode" if module.training else ""
        raise ConfigError(
            f"{origin}: given the data's images [n, {shape}] the network raised{mode} "
            f"{one_line(error)}{raised_at(error)}; build it for them, or choose other data"
        ) from error


def _answer_in_training(module: nn.Module, images: Tensor, origin: str) -> Any:
    """Returns what a network gives while it is trained; its running statistics stay."""
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        return _answer(module.train(), images, origin)
    finally:
        module.eval()
        for name, buffer in module.named_buffers():
            if name in kept and buffer.shape == kept[name].shape:
                buffer.copy_(kept[name])


def _find_wrong(logits: Any, classes: int) -> str | None:
    """Returns what a network gave for ``TRIED_IMAGES`` images, and the remedy; None if right."""
    wanted = f"[{TRIED_IMAGES}, {classes}]"
    if not isinstance(logits, Tensor):
        return f"{type(logits).__name__}; return a tensor of logits {wanted}"
    if logits.shape != (TRIED_IMAGES, classes):
        return (
            f"{list(logits.shape)} for {TRIED_IMAGES} images; the data has {classes} classes, so "
            f"{wanted} is needed"
        )
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        return f"numbers of type {kind}; return logits {wanted}, of type float32"
    return None


# ---- waiting for the user's code


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Says in the log that ``what`` is still waited for, now and then."""
    over = threading.Event()

    def tell() -> None:
        pause_s = waited_s = TELL_S
        while not over.wait(pause_s):
            log.info("still waiting for %s (%.0f s)", what, waited_s)
            pause_s *= 2
            waited_s += pause_s

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _within_limit(work: Callable[[], R], origin: str) -> R:
    """Returns what ``work`` returns, in a thread of its own that can be given up.

    Raises:
        ConfigError: When it takes longer than ``FORWARD_LIMIT_S``.
    """
    outcome: Future[R] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="first forward pass", daemon=True).start()
    try:
        return outcome.result(FORWARD_LIMIT_S)
    except TimeoutError as error:
        if outcome.done():  # the network's own
            raise
        raise ConfigError(
            f"{origin}: the network gave no answer to {TRIED_IMAGES} images within "
            f"{FORWARD_LIMIT_S:.0f} s; correct its forward, which waits or repeats for ever"
        ) from error
