"""Networks of the course and their checkpoints (safetensors with a JSON card, never a pickle)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trustml_helpers._support.arguments import (
    SEED,
    SIGMA,
    declared,
    each,
    function,
    one_of,
    shown,
    whole,
)
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.files import replace_file
from trustml_helpers._support.tensors import BOUNDS, TENSOR
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


class AblationCNN(nn.Sequential):
    """A network for digits of which only some pixels are seen: 858,634 parameters.

    Input ``(n, 2, 28, 28)``: x and 1 - x, both 0 where a pixel is removed, as
    ``smoothing.Ablation`` makes them; an image ``(n, 1, 28, 28)`` is taken whole. Output logits
    ``(n, 10)``.
    Source: the two channels are those of Levine & Feizi (2020), section 3; their network has
    kernels of 4 x 4, no normalisation, and 3.3 million parameters.

    >>> net, x = AblationCNN().eval(), torch.rand(1, 1, 28, 28)
    >>> torch.equal(net(x), net(torch.cat([x, 1 - x], 1)))
    True
    """

    def __init__(self) -> None:
        def convolve(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 5, stride=2, padding=2, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        super().__init__(
            *convolve(2, 32), *convolve(32, 64), nn.Flatten(), nn.Linear(64 * 7 * 7, 256),
            nn.ReLU(), nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, 1 - x], 1) if x.shape[1] == 1 else x)


class _SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow pads: ``ceil(side / stride)`` places."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, size, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (size, _), (stride, _) = self.kernel_size, self.stride
        excess = [
            max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[:1:-1]
        ]
        return super().forward(F.pad(x, [pad for e in excess for pad in (e // 2, e - e // 2)]))


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _SameConv2d(inputs, outputs, size, stride, groups),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    )


class _InvertedBottleneck(nn.Sequential):
    """Widen, convolve each channel alone, project; around it a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, widen: int) -> None:
        wide = widen * inputs
        expand = [_unit(inputs, wide, 1), nn.ReLU6()] if widen > 1 else []
        depthwise = [_unit(wide, wide, size, stride, groups=wide), nn.ReLU6()]
        super().__init__(*expand, *depthwise, _unit(wide, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        moved = super().forward(x)
        return x + moved if self.shortcut else moved


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, 4,652,008 parameters: the smallest of a family made for phones.

    Input ``(n, 3, h, w)`` in [0, 1], trained at 224 x 224 (the normalisation is inside), output
    logits ``(n, 1000)`` for the classes of ImageNet.
    Source: Tan & Le (2019), "EfficientNet", table 1; Liu (2020), "EfficientNet-Lite": without
    squeeze-and-excitation, ReLU6 for swish, stem and head not scaled.

    >>> sum(p.numel() for p in EfficientNetLite0().parameters())
    4652008
    """

    STAGES = (  # repeats, kernel size, stride of the first, widening, channels
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_unit(3, 32, 3, 2), nn.ReLU6())
        blocks, inputs = [], 32
        for repeats, size, stride, widen, channels in self.STAGES:
            for k in range(repeats):
                first = stride if k == 0 else 1
                blocks.append(_InvertedBottleneck(inputs, channels, size, first, widen))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(_unit(inputs, 1280, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.blocks(self.stem((x - 0.498) / 0.502)))
        return self.classifier(features.mean((2, 3)))


class Denoiser(nn.Module):
    """Noisy images and the size of their noise in, images out: 60,340 parameters for digits.

    It predicts the noise and subtracts it, on four images of half the side (every second pixel),
    with the size of the noise as one more channel. In the middle the side is halved once more.

    Args:
        channels: of the images, whose sides are even.
        width: channels inside.

    Input ``(n, channels, h, w)`` and sigma, a number or one for each image; output images.
    Source: Zhang, Zuo & Zhang (2018), "FFDNet"; the narrow middle is that of a U-Net,
    Ronneberger et al. (2015).

    >>> Denoiser()(torch.rand(2, 1, 28, 28), 0.5).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(self, channels: int = 1, width: int = 24) -> None:
        super().__init__()

        def convolve(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]

        self.enter = nn.Sequential(*convolve(4 * channels + 1, width))
        wide = 2 * width
        self.middle = nn.Sequential(
            *convolve(width, wide, 2), *convolve(wide, wide), *convolve(wide, wide),
            nn.Conv2d(wide, width, 1),
        )  # fmt: skip
        self.leave = nn.Sequential(
            *convolve(width, width), nn.Conv2d(width, 4 * channels, 3, padding=1)
        )

    def forward(self, noisy: Tensor, sigma: float | Tensor) -> Tensor:
        parts = F.pixel_unshuffle(noisy, 2)
        size = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).view(-1, 1, 1, 1)
        features = self.enter(torch.cat([parts, size.expand_as(parts[:, :1])], 1))
        seen = F.interpolate(self.middle(features), size=features.shape[2:])
        return noisy - F.pixel_shuffle(self.leave(features + seen), 2)


class PhotoDenoiser(Denoiser):
    """:class:`Denoiser` for colour photographs: 110,924 parameters.

    >>> sum(p.numel() for p in PhotoDenoiser().parameters())
    110924
    """

    def __init__(self) -> None:
        super().__init__(channels=3, width=32)


class Denoised(nn.Module):
    """A classifier behind a denoiser: what to smooth if the classifier never saw noise.

    Args:
        denoiser: ``(noisy images, sigma) -> images``, such as :class:`Denoiser`.
        classifier: images in [0, 1] to logits.
        sigma: standard deviation of the noise that will be added, in units of [0, 1].
        span: the range in which the denoiser works. One for images in [-1, 1], as most diffusion
            models are, sees the noise twice as large: it is given ``2 * x - 1`` and ``2 * sigma``,
            and its answer is taken back to [0, 1].

    Source: Salman et al. (2020), "Denoised smoothing"; Carlini et al. (2023), "(Certified!!)
    adversarial robustness for free!", with a diffusion model.

    >>> keep = Denoised(lambda x, sigma: x, lambda x: x, 0.5, span=(-1, 1))
    >>> keep(torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.7500]])
    """

    sigma: Tensor

    @declared(
        denoiser=function("(noisy images, sigma) -> images"),
        classifier=function("images to logits"), sigma=SIGMA, span=BOUNDS,
    )  # fmt: skip
    def __init__(
        self,
        denoiser: Any,
        classifier: Any,
        sigma: float,
        span: tuple[float, float] | None = (0, 1),
    ) -> None:
        super().__init__()
        self.denoiser, self.classifier, self.span = denoiser, classifier, span or (0, 1)
        # A buffer: the fingerprint of this network then tells one sigma from another.
        self.register_buffer("sigma", torch.tensor(float(sigma)))
        self.__dict__["card"] = {"sigma": float(sigma)}

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.span
        clean = self.denoiser(low + (high - low) * x, (high - low) * self.sigma)
        return self.classifier((clean - low) / (high - low))


def _one_group_each(groups: Sequence[int]) -> None:
    if sorted(set(groups)) != list(range(max(groups, default=-1) + 1)):
        raise ValueError(f"groups: expected numbers 0, 1, ... without a gap, got {shown(groups)}")


class Grouped(nn.Module):
    """A classifier whose classes are groups of another's: near-synonyms count as one.

    The logit of a group is the largest of its classes, so the answer is the group of the answer. A
    union of classes is a class, and any theorem about classifiers holds for it.

    Args:
        model: images to logits ``(n, K)``.
        groups: the group of each of the K classes, 0 to G - 1.

    Attributes:
        classes: G, the number of groups.

    >>> pairs = Grouped(lambda x: x, [0, 0, 1])
    >>> pairs(torch.tensor([[1.0, 3.0, 2.0]]))
    tensor([[3., 2.]])
    """

    groups: Tensor

    @declared(_one_group_each, model=function("images to logits"), groups=each(whole()))
    def __init__(self, model: Any, groups: Sequence[int]) -> None:
        super().__init__()
        self.model, self.classes = model, max(groups) + 1
        self.register_buffer("groups", torch.tensor(groups))
        self.__dict__["card"] = getattr(model, "card", {})

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_of(self.model, x, len(self.groups))
        empty = logits.new_full((len(logits), self.classes), -torch.inf)
        return empty.scatter_reduce(1, self.groups.expand_as(logits), logits, "amax")


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "LeNet": LeNet,
    "AblationCNN": AblationCNN,
    "SmallCNN": SmallCNN,
    "WideCNN": WideCNN,
    "EfficientNetLite0": EfficientNetLite0,
    "Denoiser": Denoiser,
    "PhotoDenoiser": PhotoDenoiser,
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
        model.load_state_dict(_unpacked(load_bytes(raw)))
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of a {content['architecture']} ({error}). "
            f"{_rebuild(content)}"
        ) from error
    model.__dict__["card"] = content  # so that smoothing can compare its sigma
    return model.eval()


def _packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and wide convolutions in 8 bits with a scale for each row, all else in 16."""
    found = {}
    for name, tensor in state.items():
        # Batch norm, and convolutions channel by channel.
        if tensor.ndim < 2 or tensor.shape[1] < 8:
            found[name] = tensor.half() if tensor.is_floating_point() else tensor
            continue
        scale = (tensor.flatten(1).abs().amax(1) / 127).half()
        rows = tensor / scale.float().view(-1, *[1] * (tensor.ndim - 1))
        found[name] = rows.round().clamp(-127, 127).to(torch.int8)
        found[f"{name}_scale"] = scale
    return found


def _unpacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 8 bits times the scale of their row, which stands beside them as ``..._scale``."""
    for name in [name for name, tensor in state.items() if tensor.dtype == torch.int8]:
        whole, scale = state[name].float(), state.pop(f"{name}_scale").float()
        state[name] = whole * scale.view(-1, *[1] * (whole.ndim - 1))
    return state


def _rebuild(content: dict[str, Any]) -> str:
    command = content.get("command", "trustml train")
    return f"Restore it with `git checkout`, or rebuild it with: {command}"


_STORED = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8)


def save(
    model: nn.Module, path: str | Path, *, dtype: torch.dtype = torch.float32, **about: Any
) -> dict[str, Any]:
    """Write a checkpoint: ``path.safetensors`` and its card ``path.json``.

    Args:
        model: one of :data:`ARCHITECTURES`.
        path: file name without suffix, or with ``.safetensors``.
        dtype: of the weights in the file. float16 halves it and rounds them to 11 bits; int8 takes
            a quarter: the weights of a layer in 8 bits with a scale for each row, the rest in 16.
        about: what the card says besides architecture and sha256 (objective, data, seed, command,
            accuracies ...); must be valid JSON.

    Returns:
        The card.

    Raises:
        ValueError: if the model is not a known architecture (:func:`load` could not rebuild it), or
            its weights would not survive in this dtype.
    """
    one_of(*_STORED)("dtype", dtype)
    architecture = type(model).__name__
    if ARCHITECTURES.get(architecture) is not type(model):
        raise ValueError(f"model={architecture}: expected one of {', '.join(ARCHITECTURES)}")
    from safetensors.torch import save as to_bytes

    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype == torch.int8:
        state = _packed(state)
    else:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    raw = to_bytes(state)
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
