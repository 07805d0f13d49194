"""A whole data set: certify it image by image, with a log that survives a kill."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trustml_helpers import smoothing
from trustml_helpers._support.arguments import ALPHA, declared, kind, maybe, one_of, record, whole
from trustml_helpers._support.arguments import each as every
from trustml_helpers._support.calling import code_of, digest, fingerprint, raw_bytes
from trustml_helpers._support.ledger import Ledger, LogError, joined
from trustml_helpers._support.processes import progress_bar, team
from trustml_helpers._support.randomness import keyed_generator
from trustml_helpers._support.tensors import IMAGES, LABELS, classes, label_range, one_label_each
from trustml_helpers.certification.log import COLUMNS, count_cells, count_columns, floor, read_log
from trustml_helpers.smoothing import BOUND, DTYPES, LAYOUTS, SHARES, Execution, SmoothedClassifier

if TYPE_CHECKING:
    import pandas as pd


def _labelled(smoothed: SmoothedClassifier, images: Tensor, labels: Tensor) -> None:
    one_label_each(images, labels.to(images.device))
    classes(label_range(labels), smoothed.num_classes, "labels")


def _numbers_fit(images: Tensor, indices: list[int] | None, numbers: list[int] | None) -> None:
    for name, given in (("indices", indices), ("numbers", numbers)):
        if given is not None and len(set(given)) != len(given):
            raise ValueError(f"{name}: expected each at most once, got {len(given)} with repeats")
    if numbers is not None and len(numbers) != len(images):
        raise ValueError(f"numbers: expected one for each of {len(images)} images, got "
                         f"{len(numbers)}")  # fmt: skip
    if len(images) == 0:
        raise ValueError("images is empty: nothing to certify")
    if indices is not None and max(indices) >= len(images):
        raise ValueError(f"indices={max(indices)}: expected 0 to {len(images) - 1}")


@declared(
    _labelled, _numbers_fit, smoothing.enough,
    smoothed=kind("a SmoothedClassifier", SmoothedClassifier), images=IMAGES, labels=LABELS,
    n0=whole(1), n=whole(1), alpha=ALPHA, bound=BOUND, indices=maybe(every(whole())),
    numbers=maybe(every(whole())), origin=maybe(record()), seed=whole(), batch_size=maybe(whole(1)),
    layout=maybe(one_of(*LAYOUTS)), dtype=maybe(one_of(*DTYPES)),
)  # fmt: skip
def certify_dataset(
    smoothed: SmoothedClassifier, images: Tensor, labels: Tensor, path: str | Path, *, n0: int,
    n: int, alpha: float, bound: str = "one_class", indices: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None, origin: Mapping[str, Any] | None = None, seed: int = 0,
    resume: bool = True, batch_size: int | None = None, layout: str | None = None,
    dtype: str | None = None, compiled: bool | None = None, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """CERTIFY many images and write one row each, flushed at once.

    The noise of an image depends on ``seed`` and its number alone, so a run that was killed and
    resumed ends with the rows of an undisturbed one (the column ``time`` aside). Under
    ``torchrun`` the images are dealt to the processes; each writes a part beside the log, and the
    first one joins them at the end, or when the run is started again.

    Args:
        smoothed: the smoothed classifier.
        images, labels: float ``(m, C, H, W)`` and int64 ``(m,)``.
        path: the log, a TSV named so; the settings are written beside it as JSON.
        n0, n, alpha, bound: as for ``SmoothedClassifier.certify``; alpha is per image.
        indices: which images; all of them if not given.
        numbers: the number of each image in its data set, for a part of one that was read alone;
            0 to m - 1 if not given. Written as idx, and the key of the noise.
        origin: where the images are from (name of the data set, files), as JSON; written beside
            the settings, and not compared: the images themselves are.
        seed: of the noise.
        resume: go on with an existing log of the same settings; otherwise an existing log is an
            error.
        batch_size, layout, dtype, compiled: how to run the network, see ``smoothing.Execution``.
            What is not given is taken from the log to be resumed; for a new one, batch size and
            layout are found by ``smoothing.search``, the dtype is the network's own, and nothing
            is compiled. They are recorded, since logits depend on them in the last digit.
        progress: show a progress bar.

    Returns:
        The whole log, as :func:`read_log` returns it.

    Raises:
        LogError: if the log, or a JSON beside it, belongs to other settings, images or another
            model (names the difference) or to something else, cannot be written, or is being
            written by another process.
    """
    with _settled(
        path, smoothed, images, labels, numbers, indices, origin, resume, progress, n0=n0, n=n,
        alpha=alpha, bound=bound, seed=seed, batch_size=batch_size, layout=layout, dtype=dtype,
        compiled=compiled,
    ) as run:  # fmt: skip
        for number, k in progress_bar(progress and run.first)(run.left, desc="certify"):
            started = time.perf_counter()
            found = run.smoothed.certify(
                images[k : k + 1], n0, n, alpha, bound, batch_size=run.batch_size,
                generator=keyed_generator(seed, number, images.device),
            )  # fmt: skip
            run.write(_row(number, int(labels[k]), found, time.perf_counter() - started))
    return read_log(path)


class _Run(NamedTuple):
    """What is settled before the first image."""

    smoothed: SmoothedClassifier  # as it is executed
    batch_size: int
    left: list[tuple[int, int]]  # of this process: number and row of each image
    write: Callable[[str], None]
    first: bool  # of the processes


@contextmanager
def _settled(
    path: str | Path, smoothed: SmoothedClassifier, images: Tensor, labels: Tensor,
    numbers: Sequence[int] | None, indices: Sequence[int] | None, origin: Mapping[str, Any] | None,
    resume: bool, progress: bool, **settings: Any,
) -> Iterator[_Run]:  # fmt: skip
    """Begin a log, or find where to go on; in the end join what the processes have written."""
    numbers = range(len(images)) if numbers is None else numbers
    place = {number: k for k, number in enumerate(numbers)}
    order = [numbers[k] for k in (range(len(images)) if indices is None else indices)]
    ledger = Ledger(path, "\t".join([*COLUMNS, *count_columns(smoothed.num_classes)]))
    settings |= smoothed.noise.settings | {
        "num_classes": smoothed.num_classes,
        "shares_of_alpha": list(SHARES) if settings["bound"] == "two_class" else [1.0],
        "model_sha256": fingerprint(smoothed.base_classifier),
        "model_code_sha256": code_of(smoothed.base_classifier), "device": images.device.type,
        "images_dtype": str(images.dtype).removeprefix("torch."),
    }  # fmt: skip
    # Old settings do not have these: all noise was Gaussian.
    optional = ["model_code_sha256", *(["noise", "norm"] if smoothed.noise.norm == "l2" else [])]
    us = team()
    with ExitStack() as held:

        def begin() -> tuple[Execution, set[int]]:
            new, known = (
                not ledger.path.exists(),
                ledger.known(settings, resume=resume, optional=optional),
            )
            k = place[order[0]]
            trial = {"votes": len(order) * (settings["n0"] + settings["n"]), "progress": progress}
            found = _execution(ledger, known, settings, smoothed, images[k : k + 1], trial)
            held.enter_context(ledger.held(new=new))
            image = {"image": order[0], "image_sha256": _digest(images[k], labels[k])}
            named = {"origin": joined((known or {}).get("origin"), origin)} if origin else {}
            these = _these(order, images, labels, place) | named
            about = settings | found._asdict() | image | these | _versions()
            ledger.begin(about if known is None else None)
            rows = _joined(ledger, order)
            ledger.keep(rows.values())
            if known is not None:
                _same_images(ledger, known, images, labels, place, these)
                ledger.begin(None if known == known | these else known | these)
            # A row has at most so many bytes.
            ledger.check_space(len(set(order) - rows.keys()) * (60 + 11 * smoothed.num_classes))
            return found, set(rows)

        execution, done = us.first(begin)
        prepared = smoothing.prepare(smoothed, execution, images[:0])
        left = [(number, place[number]) for number in order if number not in done]
        with ledger.writing(us.rank if us.size > 1 else None) as write:
            mine = left[us.rank :: us.size]
            yield _Run(prepared, execution.batch_size, mine, write, us.rank == 0)
        us.wait()
        us.first(lambda: ledger.keep(_joined(ledger, order).values()))


def _execution(
    ledger: Ledger, known: dict[str, Any] | None, wanted: dict[str, Any],
    smoothed: SmoothedClassifier, image: Tensor, trial: dict[str, Any],
) -> Execution:  # fmt: skip
    """How a log was made, or for a new one how it is to be; refused before a file is touched."""
    if known is None:
        asked = {name: wanted[name] for name in ("batch_size", "layout", "dtype")}
        found = smoothing.search(smoothed, image, **asked, **trial)
        found = found._replace(compiled=bool(wanted["compiled"]))
    else:
        needed = [*Execution._fields, *(["image_sha256"] if "image" in known else [])]
        if missing := [name for name in needed if name not in known]:
            raise LogError(f"{ledger.beside} lacks {', '.join(missing)}: use another path")
        found = Execution(*(known[name] for name in Execution._fields))
    try:
        smoothing.prepare(smoothed, found, image[:0])
    except ValueError as error:
        if known is None:
            raise
        raise LogError(f"{ledger.beside}: {error}; use another path") from error
    return found


def _versions() -> dict[str, str]:
    from trustml_helpers import __version__

    return {"torch": torch.__version__, "trustml_helpers": __version__}


def _row(number: int, label: int, found: smoothing.Certificates, seconds: float) -> str:
    predicted, radius = int(found.prediction), floor(float(found.radius))
    cells = [number, label, predicted, f"{radius:.6f}", int(predicted == label), f"{seconds:.4f}",
             *count_cells(found.counts[0].tolist())]  # fmt: skip
    return "\t".join(map(str, cells)) + "\n"


def _joined(ledger: Ledger, order: Sequence[int]) -> dict[int, str]:
    """The rows of all processes by their number, each once: others first, then these in order."""
    rows: dict[int, str] = {}
    for line in ledger.rows():
        number = line.split("\t", 1)[0]
        if not number.isdecimal():
            raise LogError(
                f"{ledger.path} has a damaged row {line.strip()[:40]!r}; remove it or rename"
            )
        rows.setdefault(int(number), line)
    place = {number: k for k, number in enumerate(order)}
    return {number: rows[number] for number in sorted(rows, key=lambda i: place.get(i, -1))}


def _digest(image: Tensor, label: Tensor) -> str:
    found = hashlib.sha256(raw_bytes(image))
    found.update(str(int(label)).encode())
    return found.hexdigest()


def _these(
    order: list[int], images: Tensor, labels: Tensor, place: dict[int, int]
) -> dict[str, str]:
    """Which images a run is about: their numbers, and what they hold."""
    rows = [place[number] for number in order]
    return {
        "numbers_sha256": hashlib.sha256(str(order).encode()).hexdigest(),
        "images_sha256": digest(images[rows], labels[rows].long()),
    }


def _same_images(
    ledger: Ledger, known: dict[str, Any], images: Tensor, labels: Tensor, place: dict[int, int],
    these: dict[str, Any],
) -> None:  # fmt: skip
    """Refuse to go on with other images: all of them if they have the same numbers, else as far as
    they are here the first one and all labels."""
    image = known.get("image", -1)
    other = not isinstance(image, int)
    if known.get("numbers_sha256") == these["numbers_sha256"]:
        other |= known.get("images_sha256") != these["images_sha256"]
    if image in [*place]:
        k = place[image]
        other |= known["image_sha256"] != _digest(images[k], labels[k])
    log = read_log(ledger.path)
    given = [(place[i], label) for i, label in zip(log["idx"], log["label"], strict=True)
             if i in place]  # fmt: skip
    if other or any(int(labels[k]) != label for k, label in given):
        raise LogError(
            f"{ledger.path} was made with other images or labels: use the same, or another path"
        )
