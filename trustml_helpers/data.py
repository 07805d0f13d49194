"""Data sets as tensors: images float32 ``(n, C, H, W)`` in [0, 1], labels int64 ``(n,)``."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trustml_helpers._support.arguments import SEED, declared, one_of, whole
from trustml_helpers._support.tensors import TENSOR

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.data import Dataset

# sha256 of the four decompressed IDX files as published by LeCun, Cortes and Burges.
_MNIST = {
    "train": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    "test": {
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
}


class DataError(RuntimeError):
    """A data file is missing or damaged; the message says how to restore it."""


def course_folder() -> Path:
    """Where the notebooks and the data of the course lie: the repository, or inside the package.

    Raises:
        DataError: if there are none (the package alone, from a wheel).
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "course", package.parent):  # setup.py puts them into the first
        if (folder / "notebooks").is_dir() and (folder / "data").is_dir():
            return folder
    raise DataError(
        f"{package} is the package alone, without the notebooks and the data of the course. They "
        "come with the repository (pip install -e .) and with the source distribution (pip install "
        "trustml_helpers-VERSION.tar.gz)."
    )


def data_folder() -> Path:
    """The folder ``data/`` of this project, or the one that ``TRUSTML_DATA`` names.

    Raises:
        DataError: if there is no such folder (the package alone, from a wheel).
    """
    named = os.environ.get("TRUSTML_DATA")
    if named and not Path(named).is_dir():
        raise DataError(f"TRUSTML_DATA={named!r}: no such folder; name the data/ of the repository")
    try:
        return Path(named) if named else course_folder() / "data"
    except DataError as error:
        raise DataError(f"{error} Or let TRUSTML_DATA name a data/ folder.") from None


@declared(split=one_of("train", "validation", "test"))
def load_mnist(split: str) -> tuple[Tensor, Tensor]:
    """MNIST as tensors, from the files that ship with the course.

    The first call in a process decompresses and verifies the files; later calls only copy,
    so the caller may change the tensors it gets.

    Args:
        split: ``"train"`` (60,000 images), ``"test"`` (10,000), or ``"validation"``: the 5,000 of
            ``"train"`` that :func:`train_validation_split` and ``trustml train`` hold out.

    Returns:
        Images, float32 ``(n, 1, 28, 28)`` in [0, 1], and labels, int64 ``(n,)``.

    Raises:
        DataError: if a file is missing or its sha256 differs from the published one.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; CC BY-SA 3.0.

    >>> images, labels = load_mnist("test")
    >>> images.dtype, labels[:5].tolist()
    (torch.float32, [7, 2, 1, 0, 4])
    """
    if split == "validation":
        return train_validation_split(*load_mnist("train"))[1]
    images, labels = _mnist_bytes(split, data_folder() / "mnist")
    return images.to(torch.float32).div_(255).unsqueeze_(1), labels.to(torch.int64)


@lru_cache(maxsize=4)
def _mnist_bytes(split: str, folder: Path) -> tuple[Tensor, Tensor]:
    (images_name, images_sha), (labels_name, labels_sha) = _MNIST[split].items()
    images = _read_idx(folder / f"{images_name}.gz", images_sha, header=16)
    labels = _read_idx(folder / f"{labels_name}.gz", labels_sha, header=8)
    return images.view(-1, 28, 28), labels


def _read_idx(path: Path, sha256: str, header: int) -> Tensor:
    """The bytes of a compressed IDX file after its header, verified."""
    restore = f"Restore it with `git checkout -- {path.name}` inside {path.parent}."
    if not path.is_file():
        raise DataError(f"{path} is missing. {restore}")
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}). {restore}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is damaged: sha256 {found[:12]}..., expected {sha256[:12]}.... {restore}"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).copy())


def _parts_not_empty(images: Tensor, labels: Tensor, validation: int) -> None:
    if len(images) != len(labels):
        raise ValueError(f"images and labels differ in length: {len(images)} and {len(labels)}")
    if validation >= len(images):
        raise ValueError(
            f"validation={validation}: expected 1 to {len(images) - 1}, so that neither part of "
            f"the {len(images)} examples is empty"
        )


@declared(_parts_not_empty, images=TENSOR, labels=TENSOR, validation=whole(1), seed=SEED)
def train_validation_split(
    images: Tensor, labels: Tensor, validation: int = 5000, *, seed: int = 0
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Hold ``validation`` random examples out of a training set.

    Args:
        images, labels: the training set, n rows each.
        validation: how many rows to hold out, from 1 to n - 1.
        seed: same seed, same split.

    Returns:
        ``((train_images, train_labels), (validation_images, validation_labels))``, disjoint.

    Raises:
        ValueError: if lengths differ or ``validation`` leaves either part empty.

    >>> x, y = torch.zeros(10, 1, 28, 28), torch.arange(10)
    >>> (_, y_train), (_, y_val) = train_validation_split(x, y, 3)
    >>> len(y_train), len(y_val), sorted(y_train.tolist() + y_val.tolist()) == list(range(10))
    (7, 3, True)
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    held, rest = order[:validation], order[validation:]
    return (images[rest], labels[rest]), (images[held], labels[held])


TORCHVISION = ("mnist", "fashion_mnist", "cifar10", "imagenet")


@declared(name=one_of(*TORCHVISION), split=one_of("train", "test"))
def torchvision_dataset(
    name: str, split: str = "test", *, root: str | Path | None = None, download: bool = False
) -> Dataset[tuple[Tensor, int]]:
    """Another data set, read by torchvision: each item is (image in [0, 1], label).

    Args:
        name: ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"``, or ``"imagenet"``: a folder with one
            sub-folder of pictures per class under ``root/train`` and ``root/val``, resized to 256
            and centre-cropped to 224 x 224.
        split: ``"train"`` or ``"test"`` (for ImageNet ``"test"`` reads ``val``).
        root: where the files are; ``data/torchvision`` if not given. ImageNet needs it.
        download: fetch what is missing. Never done unless asked for.

    Raises:
        DataError: if the files are not there, or could not be fetched; says what to do.
    """
    from torchvision import datasets, transforms  # slow to import, so only here

    if name == "imagenet":
        if root is None:
            raise ValueError("root=None: ImageNet is read from a folder, pass root='path/to/it'")
        folder = Path(root) / ("train" if split == "train" else "val")
        if not folder.is_dir():
            raise DataError(
                f"no ImageNet folder at {folder}. Expected one sub-folder of pictures per class; "
                "ImageNet must be requested from image-net.org and cannot be downloaded from here."
            )
        resize = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        )
        return datasets.ImageFolder(str(folder), transform=resize)

    kinds: dict[str, Any] = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
    }
    where = Path(root) if root is not None else data_folder() / "torchvision"
    try:
        return kinds[name](
            str(where), train=split == "train", download=download, transform=transforms.ToTensor()
        )
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(
                f"could not download {name} to {where} ({error}). If this machine has no network, "
                f"download it on another one and copy the folder to {where}."
            ) from error
        raise DataError(
            f"{name} is not in {where}. With a network, call again with download=True; "
            "without one, copy torchvision's folder there from a machine that has it."
        ) from error


def to_tensors(
    dataset: Dataset[tuple[Tensor, int]], indices: range | list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Read (a part of) a data set into memory once, as training and attacks want it.

    Args:
        dataset: items are (image tensor, label), as ``torchvision_dataset`` returns.
        indices: which items; all of them if not given.

    Returns:
        Images ``(n, C, H, W)``, in the data set's dtype, and labels, int64 ``(n,)``.

    >>> pairs = [(torch.zeros(1, 2, 2), 3), (torch.ones(1, 2, 2), 4)]
    >>> images, labels = to_tensors(pairs)
    >>> tuple(images.shape), labels.tolist()
    ((2, 1, 2, 2), [3, 4])
    """
    chosen = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]
    if len(chosen) == 0:
        raise ValueError("indices is empty: nothing to read")
    for i in chosen:
        if i not in range(len(dataset)):  # type: ignore[arg-type]
            raise ValueError(f"indices has {i}: expected 0 to {len(dataset) - 1}")  # type: ignore[arg-type]
    images, labels = zip(*(dataset[i] for i in chosen), strict=True)
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


@declared(size=whole(1, 300))
def load_photo(size: int = 224) -> Tensor:
    """The photograph of the course (a cat), cropped to its central square.

    Args:
        size: side in pixels, 1 to 300 (the picture's shorter side).

    Returns:
        float32 ``(1, 3, size, size)`` in [0, 1].

    Source: "Chelsea" by Stéfan van der Walt, CC0, as distributed with scikit-image.

    >>> tuple(load_photo(56).shape)
    (1, 3, 56, 56)
    """
    path = data_folder() / "images" / "chelsea.png"
    if not path.is_file():
        raise DataError(f"{path} is missing. Restore it with `git checkout -- data/images`.")
    from PIL import Image

    with Image.open(path) as picture:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").resize(
            (size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side)
        )
    return _pixels(square).unsqueeze(0)


def load_photos() -> tuple[Tensor, Tensor, list[str]]:
    """Twelve photographs with a class of ImageNet each, and the names of its 1,000 classes.

    Returns:
        Images float32 ``(12, 3, 224, 224)`` in [0, 1], labels int64 ``(12,)`` given by eye, and the
        names: ``names[label]``.

    Source: CC0 or public domain, each listed in ``data/images/photos.csv``.

    >>> images, labels, names = load_photos()
    >>> tuple(images.shape), names[labels[0]]
    ((12, 3, 224, 224), 'tabby')
    """
    rows = _listed("photos.csv")
    images = [_photo(row["file"], row["sha256"]) for row in rows]
    labels = [int(row["label"]) for row in rows]
    return torch.stack(images), torch.tensor(labels), _class_names()


def load_groups() -> tuple[list[int], list[str]]:
    """Near-synonyms among ImageNet's 1,000 classes as one: for ``models.Grouped``.

    Returns:
        The group of each class, and the names of the groups. A class without synonyms is a group
        with its own name.

    Source: our own, written down before anything was certified: ``data/images/README.md``.

    >>> groups, names = load_groups()
    >>> names[groups[281]], groups[281] == groups[282], len(names)
    ('cat', True, 978)
    """
    given = {int(row["class"]): row["group"] for row in _listed("groups.csv")}
    classes = _class_names()
    # Two classes of ImageNet are called crane, and two maillot: the number keeps them apart.
    own = [given.get(k, f"{name} ({k})" if classes.count(name) > 1 else name)
           for k, name in enumerate(classes)]  # fmt: skip
    names = list(dict.fromkeys(own))
    return [names.index(name) for name in own], names


def _class_names() -> list[str]:
    """Of ImageNet's 1,000 classes, in order, as torchvision has them."""
    from torchvision.models import MobileNet_V2_Weights

    return list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def _listed(name: str) -> list[dict[str, str]]:
    path = data_folder() / "images" / name
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); {_RESTORE}") from error


_RESTORE = "restore it with `git checkout -- data/images`"


def _photo(name: str, sha256: str) -> Tensor:
    from PIL import Image

    path = data_folder() / "images" / "photos" / name
    raw = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise DataError(f"{path} is missing or not the file that photos.csv lists; {_RESTORE}")
    with Image.open(io.BytesIO(raw)) as picture:
        return _pixels(picture.convert("RGB"))


def _pixels(picture: Image.Image) -> Tensor:
    """A picture in RGB as float32 ``(3, h, w)`` in [0, 1]."""
    pixels = torch.from_numpy(np.asarray(picture).copy())
    return pixels.permute(2, 0, 1).to(torch.float32).div(255).contiguous()
