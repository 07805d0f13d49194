"""Networks of the course and their checkpoints (safetensors with a JSON card, never a pickle)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trustml_helpers._support.arguments import SEED, declared, one_of, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.files import replace_file
from trustml_helpers._support.tensors import TENSOR
from trustml_helpers.data import data_folder


class LeNet(nn.Sequential):
    """The LeNet of the MNIST smoothing literature: 20-50-500-10, 431,080 parameters.

    Input ``(n, 1, 28, 28)`` in [0, 1], output logits ``(n, 10)``.
    Source: Jeong & Shin (2020), "Consistency Regularization for Certified Robustness", section 4.

    >>> sum(p.numel() for p in LeNet().parameters())
    431080
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 20, 5),
            nn.MaxPool2d(2),  # before ReLU: the same function, with a quarter of the ReLUs
            nn.ReLU(),
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(800, 500),
            nn.ReLU(),
            nn.Linear(500, 10),
        )


class _Strided(nn.Sequential):
    """Two strided convolutions, two linear layers, for images ``(n, 1, 28, 28)``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * 7 * 7, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )


class SmallCNN(_Strided):
    """A small strided network, 166,406 parameters, that trains robustly in minutes on a CPU.

    Input ``(n, 1, 28, 28)`` in [0, 1], output logits ``(n, 10)``.
    Source: Wong, Rice, Kolter (2020), "Fast is better than free", MNIST network.

    >>> sum(p.numel() for p in SmallCNN().parameters())
    166406
    """

    def __init__(self) -> None:
        super().__init__(channels=16, hidden=100)


class WideCNN(_Strided):
    """:class:`SmallCNN` with twice the channels and 128 hidden units: 436,202 parameters.

    Input ``(n, 1, 28, 28)`` in [0, 1], output logits ``(n, 10)``.

    >>> sum(p.numel() for p in WideCNN().parameters())
    436202
    """

    def __init__(self) -> None:
        super().__init__(channels=32, hidden=128)


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "LeNet": LeNet,
    "SmallCNN": SmallCNN,
    "WideCNN": WideCNN,
}


@declared(architecture=one_of(*ARCHITECTURES), seed=SEED)
def build(architecture: str, *, seed: int = 0) -> nn.Module:
    """A freshly initialised network; same seed, same weights, global RNG untouched.

    >>> a, b = build("SmallCNN", seed=1), build("SmallCNN", seed=1)
    >>> all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture]()


class CheckpointError(RuntimeError):
    """A checkpoint is unknown, damaged or altered; the message says what to do."""


def checkpoint_folder() -> Path:
    """The folder of the checkpoints that ship with the course."""
    return data_folder() / "checkpoints"


def available() -> list[str]:
    """Names of the checkpoints that :func:`load` knows, sorted.

    >>> "mnist_smallcnn_standard" in available()
    True
    """
    return sorted(path.stem for path in checkpoint_folder().glob("*.json"))


def card(name: str | Path) -> dict[str, Any]:
    """The card of a checkpoint: architecture, objective, data, seed, command, accuracies, sha256.

    Args:
        name: a name from :func:`available`, or the path of a ``.safetensors`` or ``.json`` file.

    Raises:
        CheckpointError: if there is no such checkpoint or its card cannot be read.
    """
    path = _card_path(name)
    if not path.is_file():
        known = ", ".join(available()) or "none"
        raise CheckpointError(f"no checkpoint {str(name)!r} ({path} is missing). Known: {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["architecture"] not in ARCHITECTURES:
            raise KeyError(f"unknown architecture {content['architecture']!r}")
        content["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the card {path} cannot be used ({error}). Restore it with `git checkout`, or train "
            "the model again."
        ) from error
    return content


def _card_path(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix in (".safetensors", ".json"):
        return path.with_suffix(".json")
    return checkpoint_folder() / f"{name}.json"


def load(name: str | Path) -> nn.Module:
    """A trained network in eval mode, its file verified against its card.

    Args:
        name: a name from :func:`available`, or the path of a ``.safetensors`` file with its card.

    Raises:
        CheckpointError: if the checkpoint is unknown, damaged, or not the file its card describes.

    >>> model = load("mnist_smallcnn_standard")
    >>> model.training
    False
    """
    content = card(name)
    path = _card_path(name).with_suffix(".safetensors")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, though its card exists. {_rebuild(content)}")
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != content["sha256"]:
        raise CheckpointError(
            f"{path} is not the file its card describes: sha256 {found[:12]}..., expected "
            f"{content['sha256'][:12]}.... {_rebuild(content)}"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load as load_bytes

    model = build(content["architecture"])
    try:
        model.load_state_dict(load_bytes(raw))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of a {content['architecture']} ({error}). "
            f"{_rebuild(content)}"
        ) from error
    model.__dict__["card"] = content  # so that smoothing can compare its sigma
    return model.eval()


def _rebuild(content: dict[str, Any]) -> str:
    command = content.get("command", "trustml train")
    return f"Restore it with `git checkout`, or rebuild it with: {command}"


def save(model: nn.Module, path: str | Path, **about: Any) -> dict[str, Any]:
    """Write a checkpoint: ``path.safetensors`` and its card ``path.json``.

    Args:
        model: one of :data:`ARCHITECTURES`.
        path: file name without suffix, or with ``.safetensors``.
        about: what the card says besides architecture and sha256 (objective, data, seed, command,
            accuracies ...); must be valid JSON.

    Returns:
        The card.

    Raises:
        ValueError: if the model is not a known architecture (:func:`load` could not rebuild it).
    """
    architecture = type(model).__name__
    if ARCHITECTURES.get(architecture) is not type(model):
        raise ValueError(f"model={architecture}: expected one of {', '.join(ARCHITECTURES)}")
    from safetensors.torch import save as to_bytes

    raw = to_bytes({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    content = {
        "architecture": architecture,
        "parameters": sum(p.numel() for p in model.parameters()),
        **about,
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replacing whole files means a kill leaves an old pair, or a pair that load() refuses.
    replace_file(path, raw)
    replace_file(path.with_suffix(".json"), text.encode())
    return content


@declared(images=TENSOR, batch_size=whole(1))
def predict(model: Any, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """Predicted classes, int64 ``(n,)``; the model is left as found.

    >>> predict(lambda x: -x.flatten(1), torch.tensor([[0.1, 0.2], [0.4, 0.3]])).tolist()
    [0, 1]
    """
    with unchanged(model), torch.inference_mode():
        parts = [logits_of(model, x).argmax(1) for x in images.split(batch_size)]
    # Joined outside the block: what inference_mode returns could not be used in autograd later.
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
