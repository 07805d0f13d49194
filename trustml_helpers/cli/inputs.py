"""What the commands share: their options, networks and images named by a word, lines of output."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn

from trustml_helpers import data, models, smoothing
from trustml_helpers._support.arguments import declared, maybe, whole, wholes
from trustml_helpers._support.calling import logits_of, suited_batch
from trustml_helpers._support.tensors import (
    IMAGES,
    LABELS,
    label_range,
    one_label_each,
    value_range,
)
from trustml_helpers._support.tensors import classes as one_of_the_classes


def option(words: str, *names: str, **more: Any) -> Any:
    """An option with its line of help."""
    return typer.Option(*names, help=words, **more)


def pixels(text: Any) -> float:
    """A number in pixel units, also written as a fraction: 8/255."""
    top, slash, bottom = str(text).partition("/")
    try:
        return float(top) / (float(bottom) if slash else 1)
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(
            f"{text!r}: expected a number or a fraction, such as 0.03 or 8/255"
        ) from error


def length(words: str, *names: str) -> Any:
    """An option in pixel units."""
    more: dict[str, Any] = {"parser": pixels, "metavar": "NUMBER"}
    return option(f"{words} A fraction such as 8/255 is fine.", *names, **more)


Network = Annotated[str, typer.Argument(
    help="Name of a checkpoint, path of a .safetensors file with its card, or module:name, "
    "a network or a function that returns one with its weights loaded. It takes images "
    "(n, C, H, W) in [0, 1] (normalise inside) and returns logits (n, K)."
)]  # fmt: skip
DataSet = Annotated[str | None, option(
    "mnist (what a checkpoint gets if nothing is given; module:name needs --data), photos (ship "
    "with the course); fashion_mnist, cifar10, imagenet (torchvision's files, see --root); a "
    "folder of pictures, in sub-folders called by the number of their class, or else labelled by "
    "what the network says of them as they are (of different sizes: the middle 224 x 224 after "
    "scaling to 256); an .npz file with the arrays images (uint8, or floating point in [0, 1]; "
    "channels first or last) and labels; or module:function, which returns both as tensors.",
    "--data",
)]  # fmt: skip
Root = Annotated[Path | None, option("Folder of torchvision's files.")]
Split = Annotated[str, option(
    "Which part of a named data set; validation: the 5,000 training images of MNIST that train "
    "holds out with seed 0.", metavar="train|validation|test",
)]  # fmt: skip
Device = Annotated[
    str | None, option("cpu, cuda, cuda:1, ...; a GPU if there is one, if not given.")
]
Seed = Annotated[int, option("Seed of everything random; same seed, same result.")]
Sigma = Annotated[float | None, length(
    "Standard deviation of the noise, in units of pixels in [0, 1]; a checkpoint's training sigma "
    "if not given."
)]  # fmt: skip
Noise = Annotated[str | None, option(
    "gaussian (radii in l2), uniform or laplace (l1; all three of standard deviation sigma), or "
    "ablation (l0: pixels that may change); a checkpoint's own if not given, else gaussian.",
    metavar="|".join(smoothing.NOISES),
)]  # fmt: skip
Keep = Annotated[
    int | None, option("Pixels that ablation keeps; as a checkpoint was trained if not given.")
]
Groups = Annotated[str | None, option(
    "Classes that count as one: a CSV with the columns class and group (words); a class that is "
    "not listed is a group of its own. imagenet: the near-synonyms that ship with the course.",
    "--groups",
)]  # fmt: skip
Denoiser = Annotated[str | None, option(
    "Put this in front of the network, as denoised smoothing does: mnist_denoiser, photo_denoiser, "
    "or module:name, a module that takes noisy images and sigma and returns images, or a function "
    "that returns one."
)]  # fmt: skip
Alpha = Annotated[float, option("Error probability per image.")]
Every = Annotated[int, option("Take every k-th image: 0, k, 2k, ...")]
Limit = Annotated[int | None, option("Take at most this many of them.")]
BatchSize = Annotated[
    int | None, option("Noisy images per forward pass; a short trial finds it if not given.")
]
Layout = Annotated[str | None, option(
    "Memory layout of the weights; a short trial finds it if not given.",
    metavar="|".join(smoothing.LAYOUTS),
)]  # fmt: skip
DType = Annotated[str | None, option(
    "Run the network in this precision; its own if not given. Noise is drawn and added in that of "
    "the images.", metavar="|".join(smoothing.DTYPES),
)]  # fmt: skip


class Images(NamedTuple):
    """The chosen images of a data set."""

    x: Tensor  # float32 (m, C, H, W) in [0, 1]
    y: Tensor  # int64 (m,)
    numbers: list[int]  # of each in its data set
    origin: dict[str, Any]  # what a log says of them: data, split, labels_from, files


def network(name: str, option: str = "model") -> Any:
    """A checkpoint by its name or path, or what ``module:attribute`` holds or returns."""
    if name.endswith(".py"):
        raise ValueError(f"{option}={name!r}: expected module:attribute, such as "
                         f"{Path(name).stem}:f for f in this file")  # fmt: skip
    if not _is_attribute(name):
        return models.load(name)
    found = _attribute(option, name)
    if callable(found) and not isinstance(found, nn.Module):
        found = found()
    if not callable(found):
        raise ValueError(f"{option}={name!r}: expected a network or a function that returns one, "
                         f"got {type(found).__name__}")  # fmt: skip
    return found.eval() if isinstance(found, nn.Module) else found


def data_for(model: str, name: str | None) -> str:
    """The data set that is named, or MNIST for a checkpoint.

    Raises:
        ValueError: if none is named for a network of which it is not known.
    """
    if name is None and _is_attribute(model):
        raise ValueError(f"data=None: expected the images for {model}, a network of your own; pass "
                         "--data mnist, a folder of pictures, or what --help lists")  # fmt: skip
    if name is None and model.endswith(".safetensors"):
        typer.echo(f"--data is not given: {model} gets the images of MNIST", err=True)
    return name or "mnist"


def images(name: str, split: str, root: Path | None, every: int, limit: int | None) -> Images:
    """Images 0, every, 2 * every, ... of a data set, named as :data:`DataSet` says.

    Raises:
        ValueError, TypeError: if there is no such data set, or its arrays are no images.
        DataError: if its files are missing.
    """
    origin: dict[str, Any] = {"data": name, "labels_from": name}
    if name in data.TORCHVISION:
        origin |= {"split": split}
    if name == "mnist" and root is None:
        x, y = data.load_mnist(split)
    elif name == "photos":
        x, y, _ = data.load_photos()
    elif name.endswith(".npz"):
        x, y = _arrays(name)
    elif Path(name).is_dir():
        return _folder(name, every, limit)
    elif _is_attribute(name):
        x, y = _attribute("data", name)()
    elif name not in data.TORCHVISION:
        raise ValueError(f"data={name!r}: no such folder; expected one, an .npz file, "
                         f"module:function, photos, {', '.join(data.TORCHVISION)}")  # fmt: skip
    else:
        dataset: Any = data.torchvision_dataset(name, split, root=root)
        if name == "imagenet" and len(dataset.classes) != 1000:
            raise ValueError(
                f"data='imagenet': {len(dataset.classes)} folders of classes, so labels would be 0 "
                f"to {len(dataset.classes) - 1} and not those of ImageNet's 1,000 classes; "
                "call the folders by the number of their class, and pass that folder to --data"
            )
        chosen = indices(len(dataset), every, limit)
        return Images(*data.to_tensors(dataset, chosen), chosen, origin)
    one_label_each(IMAGES(f"images of {name}", x), LABELS(f"labels of {name}", y))
    low, high = value_range(x)
    if len(x) == 0 or not -1e-6 <= low <= high <= 1 + 1e-6:  # NaN is neither
        raise ValueError(
            f"data={name!r}: expected images with values in [0, 1], got {len(x)} from {low:g} to "
            f"{high:g}; divide by 255 (or save uint8), and normalise inside the network"
        )
    chosen = indices(len(x), every, limit)
    return Images(x[chosen], y[chosen], chosen, origin)


def ready(
    name: str, chosen: Images, groups: str | None, where: torch.device,
    seen: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Any, Images, int]:  # fmt: skip
    """A named network, the images for it, and its number of classes; classes in groups, if given.
    A network that takes images in another form is shown them as ``seen`` makes them.

    Raises:
        ValueError: if it cannot take the images, or a label is none of its classes.
    """
    model = network(name)
    model = model.to(where) if isinstance(model, nn.Module) else model
    x, y, origin = chosen.x.to(where), chosen.y, chosen.origin
    classes = _classes(name, model, seen(x[:1]))
    if y.numel() and (y == UNLABELLED).all():
        y = models.predict(model, seen(x), batch_size=suited_batch(x)).cpu()
        typer.echo("no labels: a picture counts as what the network says of it as it is", err=True)
        origin = origin | {"labels_from": "the network itself, without noise"}
    one_of_the_classes(label_range(y), classes, f"data={origin['data']!r}")
    if groups is not None:
        group = data.load_groups()[0] if groups == "imagenet" else _groups(groups, classes)
        if len(group) != classes:
            raise ValueError(f"groups={groups!r}: for {len(group)} classes; {name} has {classes}")
        model, y = models.Grouped(model, group).eval().to(where), torch.tensor(group)[y]
        classes = model.classes
    return model, Images(x, y.to(where), chosen.numbers, origin), classes


def _classes(name: str, model: Any, x: Tensor) -> int:
    """How many classes a network has, from its answer to one image."""
    try:
        with torch.inference_mode():
            return logits_of(model, x).shape[1]
    except Exception as error:  # whatever a network raises on images that it cannot take
        raise ValueError(f"model={name!r}: {reason(error)}") from error


def _groups(path: str, classes: int) -> list[int]:
    import pandas as pd

    try:
        table = pd.read_csv(path)
        given = dict(zip(wholes()("class", table["class"]).tolist(), table["group"], strict=True))
    except Exception as error:  # a file that is none, or another table
        raise ValueError(f"groups={path!r}: expected a CSV with the columns class, whole numbers, "
                         f"and group ({error})") from error  # fmt: skip
    own = [str(given.get(k, f"class {k}")) for k in range(classes)]
    names = list(dict.fromkeys(own))
    return [names.index(name) for name in own]


@declared(every=whole(1), limit=maybe(whole(1)))
def indices(length: int, every: int, limit: int | None) -> list[int]:
    """0, every, 2 * every, ...: at most ``limit`` numbers below ``length``."""
    return list(range(0, length, every))[:limit]


def first(part: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
    """The first images and labels, all of them without a limit."""
    chosen = indices(len(part[0]), 1, limit)
    return part[0][: len(chosen)], part[1][: len(chosen)]


def device(name: str | None) -> torch.device:
    """The named device; without a name a GPU if there is one. Each process of torchrun has its
    own GPU."""
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(kind)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.randn(1, device=found, generator=torch.Generator(found)).item()
    except Exception as error:  # whatever a back end raises that is not there
        raise ValueError(
            f"device={kind!r}: torch cannot compute there ({reason(error)}); use --device cpu"
        ) from error
    return found


def check_output(output: Path | None, option: str = "output") -> None:
    """Raise ValueError, before any work, if a file could not be written for want of its folder, or
    where a folder is."""
    if output is not None and output.is_dir():
        raise ValueError(f"{option}={str(output)!r}: is a folder; name a file in it")
    if output is not None and not output.resolve().parent.is_dir():
        raise ValueError(f"{option}={str(output)!r}: the folder does not exist; create it first")


def print_share(name: str, share: float, images: int) -> None:
    """One line: how many percent, of how many images."""
    typer.echo(f"{name:>20}  {100 * share:6.2f} %   of {images} images")


def reason(error: Exception) -> str:
    """What an error of someone else's code says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_attribute(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and attribute.isidentifier()


def _attribute(argument: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` does, so that one's own file is found
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:  # `nets.py:f` ends here too
        raise ValueError(f"{argument}={name!r}: {error}; expected module:attribute (nets:f for f "
                         f"in nets.py), looked up from {os.getcwd()}") from error  # fmt: skip


UNLABELLED = -1


def _folder(name: str, every: int, limit: int | None) -> Images:
    """Pictures in sub-folders called by numbers, or all of them without labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
    from torchvision.transforms import v2

    files = sorted(p for p in Path(name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise ValueError(f"data={name!r}: no pictures in this folder ({', '.join(IMG_EXTENSIONS)})")
    parents = {path.parent.relative_to(name).name for path in files}
    numbered = all(parent.isdecimal() for parent in parents)
    if not numbered and any(parent.isdecimal() for parent in parents):
        raise ValueError(f"data={name!r}: some folders are called by the number of a class, and "
                         "others are not: either all or none")  # fmt: skip
    chosen = indices(len(files), every, limit)
    picked = [files[k] for k in chosen]
    try:
        pictures = [default_loader(str(path)) for path in picked]
    except OSError as error:  # Pillow's, of a file that is no picture
        raise ValueError(f"data={name!r}: {reason(error)}") from error
    shrink = [v2.Resize(256), v2.CenterCrop(224)] if len({p.size for p in pictures}) > 1 else []
    look = v2.Compose([*shrink, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    labels = [int(path.parent.name) if numbered else UNLABELLED for path in picked]
    names = [path.relative_to(name).as_posix() for path in picked]
    origin = {"data": name, "labels_from": "the names of the folders",
              "files": dict(zip(map(str, chosen), names, strict=True))}  # fmt: skip
    return Images(torch.stack([look(p) for p in pictures]), torch.tensor(labels), chosen, origin)


def _arrays(path: str) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["images"], arrays["labels"]
            if x.dtype.kind not in "fiub":
                raise ValueError(f"images of {x.dtype}")
            labels = wholes()("labels", y)
    except Exception as error:  # a damaged file raises errors of zipfile, zlib, NumPy, ...
        raise ValueError(f"data={path!r}: expected a file of numpy.savez with the arrays images, "
                         f"real numbers, and labels ({error})") from error  # fmt: skip
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))  # as Pillow and TensorFlow have them
    scaled = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    return torch.from_numpy(scaled), torch.from_numpy(labels)
