"""A whole data set: certify it image by image, keep a log that survives a kill, read it back."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from trustml_helpers import execution, files, processes
from trustml_helpers.certification.audit import Audit, audit_log, predict_acr
from trustml_helpers.smoothing import Execution
from trustml_helpers._support.files import InUseError, only_writer, replace_file
from trustml_helpers.certification.log import COLUMNS, LogError, check_rows, read_table, vote_counts
from trustml_helpers._support.calling import fingerprint, raw_bytes
from trustml_helpers._support.randomness import keyed_generator as noise_generator
from trustml_helpers._support.processes import progress_bar
from trustml_helpers.smoothing import ABSTAIN, SHARES, SmoothedClassifier, radii
from trustml_helpers.smoothing import check_bound

if TYPE_CHECKING:
    import pandas as pd

    Log = pd.DataFrame

__all__ = [
    "COLUMNS", "Audit", "LogError", "audit_log", "average_certified_radius", "certified_accuracy",
    "certify_dataset", "fingerprint", "noise_generator", "predict_acr", "read_log", "rebound",
    "summary", "vote_counts",
]  # fmt: skip

# What a run takes from the settings of a log, which a hand may have changed.
_KINDS = {"batch_size": int, "layout": str, "dtype": str, "compiled": bool, "image": int,
          "image_sha256": str}  # fmt: skip


def certify_dataset(
    smoothed: SmoothedClassifier,
    images: Tensor,
    labels: Tensor,
    path: str | Path,
    *,
    n0: int,
    n: int,
    alpha: float,
    bound: str = "one_class",
    indices: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    seed: int = 0,
    resume: bool = True,
    batch_size: int | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    compiled: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
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
        seed: of the noise.
        resume: go on with an existing log of the same settings; otherwise an existing log is an
            error.
        batch_size, layout, dtype, compiled: how to run the network, see ``execution.Execution``.
            What is not given is taken from the log to be resumed; for a new one, batch size and
            layout are found by ``execution.search``, the dtype is the network's own, and nothing
            is compiled. They are recorded, since logits depend on them in the last digit.
        progress: show a progress bar.

    Returns:
        The whole log, as :func:`read_log` returns it.

    Raises:
        ValueError: for arguments out of range, or a log without such a suffix, before any work.
        LogError: if the log, or a JSON beside it, belongs to other settings, images or another
            model (names the difference) or to something else, cannot be written, or is being
            written by another process.
    """
    chosen = list(range(len(images))) if indices is None else [int(i) for i in indices]
    named = list(range(len(images))) if numbers is None else [int(i) for i in numbers]
    _check_indices(chosen, named, images, labels)
    path = Path(path)
    files.settings_file(path)  # refuses a name that cannot have one
    n0, n, seed = files.whole(n0=n0), files.whole(n=n), files.whole(seed=seed)
    batch_size = None if batch_size is None else files.whole(batch_size=batch_size)
    compiled = None if compiled is None else bool(compiled)
    # A call without images checks n0, n, alpha, bound and batch_size before any file is touched.
    smoothed.certify(images[:0], n0, n, alpha, bound, batch_size=batch_size)
    alpha = float(alpha)
    settings = {
        "sigma": smoothed.sigma, "n0": n0, "n": n, "alpha": alpha, "bound": bound,
        "shares_of_alpha": list(SHARES) if bound == "two_class" else [1.0], "seed": seed,
        "num_classes": smoothed.num_classes, "model_sha256": fingerprint(smoothed.base_classifier),
        "device": images.device.type, "images_dtype": str(images.dtype).removeprefix("torch."),
    }  # fmt: skip
    how = {"batch_size": batch_size, "layout": layout, "dtype": dtype, "compiled": compiled}
    order = [named[i] for i in chosen]

    def begin() -> tuple[set[int], Execution]:
        known, new = _recorded(path, settings | how, resume=resume), not path.exists()
        if known is None:
            found = execution.search(
                smoothed, images[chosen[:1]], batch_size=batch_size, layout=layout, dtype=dtype
            )._replace(compiled=bool(compiled))
            execution.prepare(smoothed, found, images[:0])  # refuses before a file is touched
        else:
            found = Execution(*(known[name] for name in Execution._fields))
        _hold(path, held)
        if new and path.exists():  # the trial above takes its time
            raise LogError(f"{path} was written meanwhile: start again to go on with it")
        if known is None:
            digest = _digest(images[chosen[0]], labels[chosen[0]])
            first = {"image": order[0], "image_sha256": digest}
            _write(files.settings_file(path), _as_json(settings | found._asdict() | first))
        if new:
            _write(path, _header(smoothed.num_classes))
        done = _gather(path, order)
        if known is not None:
            _check_images(path, known, images, labels, named)
        _check_space(path, len(set(order) - done), smoothed.num_classes)
        return done, found

    with processes.team() as team, ExitStack() as held:
        done, found = team.first(begin)
        prepared = execution.prepare(smoothed, found, images[:0])

        def row(index: int) -> list[Any]:
            started = time.perf_counter()
            certificate = prepared.certify(
                images[index : index + 1], n0, n, alpha, bound, batch_size=found.batch_size,
                generator=noise_generator(seed, named[index], images.device),
            )  # fmt: skip
            predicted, label = int(certificate.prediction), int(labels[index])
            radius = f"{_floor(float(certificate.radius)):.6f}"
            took = f"{time.perf_counter() - started:.4f}"
            return [named[index], label, predicted, radius, int(predicted == label), took,
                    *certificate.counts[0].tolist()]  # fmt: skip

        left = [i for i in chosen if named[i] not in done][team.rank :: team.size]
        part = path if team.size == 1 else path.with_name(f"{path.name}.part{team.rank}")
        _append(part, map(row, progress_bar(progress and team.rank == 0)(left, desc="certify")))
        team.wait()
        team.first(lambda: _gather(path, order))
    return read_log(path)


def _append(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write each row as soon as it is there."""
    try:
        with path.open("a", encoding="utf-8") as log:
            for row in rows:
                log.write("\t".join(map(str, row)) + "\n")
                log.flush()
    except OSError as error:
        raise LogError(
            f"{path} could not be written ({error}); the rows in it are kept: make room and start "
            "the same run again"
        ) from error


def _floor(radius: float) -> float:
    """A radius rounded down to 6 decimals: the log must never claim more than was certified."""
    down = math.floor(radius * 1e6) / 1e6
    return down if down <= radius else down - 1e-6


def _check_indices(chosen: list[int], named: list[int], images: Tensor, labels: Tensor) -> None:
    if len(images) != len(labels):
        raise ValueError(f"images and labels differ in length: {len(images)} and {len(labels)}")
    if labels.ndim != 1 or labels.is_floating_point() or (labels < 0).any():
        raise ValueError(
            f"labels: expected whole numbers (m,) of at least 0, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if len(named) != len(images) or len(set(named)) != len(named) or min(named, default=0) < 0:
        raise ValueError(
            f"numbers: expected {len(images)} different numbers from 0, one per image, got "
            f"{len(set(named))} different ones of {len(named)}"
        )
    if not chosen:
        raise ValueError("indices is empty: nothing to certify")
    if len(set(chosen)) != len(chosen):
        raise ValueError("indices: expected each image at most once")
    wrong = [i for i in chosen if not 0 <= i < len(images)]
    if wrong:
        raise ValueError(f"indices={wrong[:3]}: expected 0 to {len(images) - 1}")


def _recorded(path: Path, wanted: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """The settings that an earlier run left, if they are the wanted ones; None if there is none."""
    sidecar, exists = files.settings_file(path), path.exists()
    if not exists and (parts := _parts(path)):
        raise LogError(
            f"{', '.join(part.name for part in parts)}: rows of an earlier run are there, but "
            f"{path} is not; restore it with {sidecar.name}, or remove them"
        )
    if not exists and not sidecar.exists():
        return None
    if exists and not resume:
        raise LogError(f"{path} exists: pass resume=True to go on with it, or another path")
    if not sidecar.exists():
        raise LogError(f"{sidecar} is missing, so the settings of {path} are not known; rename it")
    which, cure = path, "use another path"
    if not exists:  # as a kill between the two leaves it
        which, cure = sidecar, f"use another path than {path}, or remove it"
    try:
        known = files.read_settings(sidecar)
    except (OSError, ValueError) as error:
        raise LogError(f"{sidecar} cannot be read ({error}): {cure}") from error
    needed = [*wanted, "image_sha256"] if "image" in known else wanted  # old ones have neither
    if missing := [key for key in needed if key not in known]:
        raise LogError(f"{sidecar} lacks {', '.join(missing)}: {cure}")
    for key, kind in _KINDS.items():
        if not isinstance(known.get(key, kind()), kind):
            raise LogError(f"{sidecar} has {key}={known[key]!r}, no {kind.__name__}: {cure}")
    for key, value in wanted.items():
        if value is not None and known[key] != value:
            other = f"{key}={known[key]!r}, not {value!r}: use the same settings"
            if key == "model_sha256":
                short = f"{str(known[key])[:12]}..., not {str(value)[:12]}..."
                other = f"another network, of model_sha256 {short}: load the same weights"
            raise LogError(f"{which} was made with {other}, or {cure}")
    return known


def _parts(path: Path) -> list[Path]:
    """What the processes of a run have written beside its log."""
    return sorted(path.parent.glob(glob.escape(path.name) + ".part[0-9]*"))


def _digest(image: Tensor, label: Tensor) -> str:
    digest = hashlib.sha256(raw_bytes(image))
    digest.update(str(int(label)).encode())
    return digest.hexdigest()


def _check_images(
    path: Path, known: dict[str, Any], images: Tensor, labels: Tensor, named: list[int]
) -> None:
    """Refuse to go on with other images: as far as they are here, the first one and all labels."""
    place = {number: k for k, number in enumerate(named)}
    first = place.get(known.get("image", -1))
    other = first is not None and known["image_sha256"] != _digest(images[first], labels[first])
    log = read_log(path)
    given = [(place[i], label) for i, label in zip(log["idx"], log["label"], strict=True)
             if i in place]  # fmt: skip
    if other or any(int(labels[k]) != label for k, label in given):
        raise LogError(
            f"{path} was made with other images or labels: use the same, or another path"
        )


def _header(classes: int) -> str:
    return "\t".join([*COLUMNS, *(f"count_{k}" for k in range(classes))]) + "\n"


def _hold(path: Path, held: ExitStack) -> None:
    """Write the log alone until ``held`` is closed."""
    try:
        held.enter_context(only_writer(path))
    except InUseError as error:
        raise LogError(str(error)) from error
    except OSError as error:
        raise LogError(f"{path} cannot be written ({error}): choose another folder") from error


def _as_json(settings: dict[str, Any]) -> str:
    from trustml_helpers import __version__

    about = settings | {"torch": torch.__version__, "trustml_helpers": __version__}
    return json.dumps(about, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise LogError(f"{path} cannot be written ({error}): choose another folder") from error


def _check_space(path: Path, rows: int, classes: int) -> None:
    """Refuse to start what could not be written to its end; a row has at most so many bytes."""
    needed, free = rows * (60 + 11 * classes), shutil.disk_usage(path.parent).free
    if free < needed:
        raise LogError(f"{path}: {rows} rows need {needed:,} bytes, {free:,} are free; make room")


def _gather(path: Path, order: Sequence[int]) -> set[int]:
    """Join the log with the parts of other processes; returns the idx of its rows.

    What is kept are whole rows, each idx once: other rows first, then the wanted ones in order. A
    kill at any moment leaves the old log with its parts, or the new one.
    """
    parts, rows = _parts(path), dict[int, str]()
    text = path.read_text(encoding="utf-8")
    header, *lines = _whole_lines(text)
    if not header.startswith("\t".join(COLUMNS)):
        raise LogError(f"{path} does not begin with the expected header; rename it")
    for part in parts:
        lines += _whole_lines(part.read_text(encoding="utf-8"))
    for line in lines:
        number = line.split("\t", 1)[0]
        if not number.isdecimal():
            raise LogError(f"{path} has a damaged row {line.strip()[:40]!r}; remove it or rename")
        rows.setdefault(int(number), line)
    place = {index: k for k, index in enumerate(order)}
    joined = header + "".join(rows[i] for i in sorted(rows, key=lambda i: place.get(i, -1)))
    if joined != text:
        replace_file(path, joined.encode())
    for part in parts:
        part.unlink()
    return set(rows)


def _whole_lines(text: str) -> list[str]:
    """Lines with their ends; what a kill left of the last one is dropped."""
    return text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]


def read_log(path: str | Path, bound: str | None = None) -> pd.DataFrame:
    """A certification log as a table: this project's, or one of Cohen et al.'s format.

    A last row that was cut off in the middle is left out, with a warning.

    Args:
        path: of the log.
        bound: ``"one_class"`` or ``"two_class"`` for the radii that the counts give under this
            bound, by :func:`rebound` with the settings in the JSON file beside the log; the
            written radii if not given.

    Returns:
        Columns ``idx label predict radius correct time`` (time in seconds, whatever its format),
        then the counts if the log has them.

    Raises:
        LogError: if the file is missing or is not such a log, or, with ``bound``, has no settings
            or no counts.
    """
    if bound is not None:
        check_bound(bound)
    path, table = Path(path), read_table(Path(path))
    if bound is None:
        return table
    try:
        sidecar = files.settings_file(path)
    except ValueError as error:  # it may be another log's
        raise LogError(f"bound={bound!r}: {error}") from error
    try:
        about = files.read_settings(sidecar)
        made = about["sigma"], about["n"], about["alpha"]
    except (OSError, ValueError, KeyError) as error:
        raise LogError(
            f"bound={bound!r}: {sidecar} does not say sigma, n and alpha "
            f"({error}); read the log without bound and use rebound"
        ) from error
    try:
        return rebound(table, *made, bound)
    except (ValueError, TypeError, LogError) as error:
        raise LogError(f"{path} with the settings in {sidecar}: {error}") from error


def certified_accuracy(log: pd.DataFrame, radii: ArrayLike) -> NDArray[np.float64]:
    """Share of all rows that are correct with a radius of at least r, for each r.

    Source: Cohen et al. (2019), section 4: the certified test accuracy at radius r.
    """
    log = check_rows(log, needed=("correct", "radius"))
    if len(log) == 0:
        raise ValueError("log has no rows: expected at least 1")
    correct, radius = log["correct"].to_numpy() == 1, log["radius"].to_numpy()
    wanted = np.atleast_1d(np.asarray(radii, dtype=float))
    return (correct[:, None] & (radius[:, None] >= wanted)).mean(axis=0)


def average_certified_radius(log: pd.DataFrame) -> tuple[float, float]:
    """ACR and its standard error over images: the mean of the radius, 0 where not correct.

    Source: Zhai et al. (2020), section 5.
    """
    radius = _scores(log)
    if len(radius) < 2:
        raise ValueError(f"log has {len(radius)} rows: expected at least 2")
    return float(radius.mean()), float(radius.std(ddof=1) / math.sqrt(len(radius)))


def rebound(
    log: pd.DataFrame, sigma: float, n: int, alpha: float, bound: str = "one_class"
) -> pd.DataFrame:
    """The log as another bound or another alpha would have it, from its counts.

    The class of a row stays what the selection samples chose. Rows that abstained do not say
    which class that was and go on abstaining: so certify with ``"two_class"``, which hardly ever
    abstains where ``"one_class"`` does not, and derive the latter.

    Args:
        log: with counts, as :func:`read_log` returns it.
        sigma, n: as the log was made.
        alpha, bound: as they should have been.

    Returns:
        A copy with new ``radius`` (rounded down to 6 decimals), ``predict`` and ``correct``.

    Raises:
        LogError: for a log without counts or with a cell that no certification writes.
        ValueError: for a log without labels or classes, or arguments out of range.
    """
    log = check_rows(log, needed=("label", "predict"))
    counts = vote_counts(log)
    if counts.shape[1] == 0:
        raise LogError("the log has no counts: another bound cannot be computed from it")
    chosen = log["predict"].to_numpy()
    radius, _ = radii(torch.as_tensor(counts), torch.as_tensor(chosen.clip(min=0)), n, alpha,
                      sigma, bound)  # fmt: skip
    radius = np.where(chosen == ABSTAIN, 0.0, [_floor(each) for each in radius])
    predict = np.where(radius > 0, chosen, ABSTAIN)
    correct = (predict == log["label"].to_numpy()).astype(int)
    return log.assign(radius=radius, predict=predict, correct=correct)


def summary(logs: Mapping[str, pd.DataFrame], radii: Sequence[float]) -> pd.DataFrame:
    """One row per log: images, certified accuracy at each radius, ACR, its error, abstentions.

    Args:
        logs: by name, as :func:`read_log` returns them.
        radii: in pixel units.

    Returns:
        A table by name; columns ``images``, ``r=...``, ``ACR``, ``s.e.``, ``abstained``, shares
        in [0, 1].

    Raises:
        LogError: for a log without rows.
        ValueError: for a log without the columns ``predict``, ``radius`` and ``correct``.
    """
    import pandas as pd

    rows = {}
    for name, given in logs.items():
        log = check_rows(given, f"the log {name}", ("predict", "radius", "correct"))
        if len(log) == 0:
            raise LogError(f"the log {name} has no rows: certify at least one image first")
        # One row has no standard error, but a run of one image must not end in an error.
        acr, error = average_certified_radius(log) if len(log) > 1 else (_scores(log)[0], math.nan)
        shares = zip(radii, certified_accuracy(log, radii), strict=True)
        row = {"images": len(log)} | {f"r={radius:g}": float(share) for radius, share in shares}
        abstained = float((log["predict"] == ABSTAIN).mean())
        rows[name] = row | {"ACR": acr, "s.e.": error, "abstained": abstained}
    return pd.DataFrame.from_dict(rows, orient="index")


def _scores(log: pd.DataFrame) -> NDArray[np.float64]:
    """What each row adds to the ACR: its radius, 0 where wrong or abstained."""
    log = check_rows(log, needed=("correct", "radius"))
    return np.where(log["correct"] == 1, log["radius"], 0.0)
