"""A whole data set: certify it image by image, keep a log that survives a kill, read it back."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from trustml_helpers.audit import Audit, audit_log
from trustml_helpers.models import replace_file
from trustml_helpers.robustness import progress_bar
from trustml_helpers.smoothing import ABSTAIN, SmoothedClassifier

if TYPE_CHECKING:
    import pandas as pd

    Log = pd.DataFrame

__all__ = [
    "Audit", "LogError", "audit_log", "average_certified_radius", "certified_accuracy",
    "certify_dataset", "fingerprint", "read_log", "summary",
]  # fmt: skip
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


class LogError(RuntimeError):
    """A certification log cannot be used; the message says why and what to do."""


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
    seed: int = 0,
    resume: bool = True,
    batch_size: int = 256,
    progress: bool = True,
) -> pd.DataFrame:
    """CERTIFY many images and write one row each, flushed at once.

    The noise of an image depends on ``seed`` and its index alone, so a run that was killed and
    resumed ends with the rows of an undisturbed one (the column ``time`` aside).

    Args:
        smoothed: the smoothed classifier.
        images, labels: float ``(n, C, H, W)`` and int64 ``(n,)``.
        path: the log, a TSV; the settings are written beside it as JSON.
        n0, n, alpha, bound: as for ``SmoothedClassifier.certify``; alpha is per image.
        indices: which images; all of them if not given.
        seed: of the noise.
        resume: go on with an existing log of the same settings; otherwise an existing log is an
            error.
        batch_size: noisy images per forward pass; part of the settings, as are device, dtype and
            memory layout, since logits depend on them in the last digit.
        progress: show a progress bar.

    Returns:
        The whole log, as :func:`read_log` returns it.

    Raises:
        ValueError: for arguments out of range, before any work.
        LogError: if the log belongs to other settings or another model; names the difference.
    """
    chosen = list(range(len(images))) if indices is None else [int(i) for i in indices]
    _check_indices(chosen, images, labels)
    path = Path(path)
    settings = {
        "sigma": smoothed.sigma, "n0": n0, "n": n, "alpha": alpha, "bound": bound, "seed": seed,
        "num_classes": smoothed.num_classes, "batch_size": batch_size,
        "model_sha256": fingerprint(smoothed.base_classifier),
        **_arithmetic(smoothed.base_classifier, images),
    }  # fmt: skip
    # A call without images checks n0, n, alpha and bound before any file is touched.
    smoothed.certify(images[:0], n0, n, alpha, bound)
    done = _open_log(path, settings, smoothed.num_classes, resume=resume)
    left = [i for i in chosen if i not in done]
    with path.open("a", encoding="utf-8") as log:
        for index in progress_bar(progress)(left, desc="certify"):
            started = time.perf_counter()
            generator = torch.Generator(images.device).manual_seed(_noise_seed(seed, index))
            found = smoothed.certify(
                images[index : index + 1], n0, n, alpha, bound,
                generator=generator, batch_size=batch_size,
            )  # fmt: skip
            predicted, label = int(found.prediction), int(labels[index])
            row = [index, label, predicted, f"{_floor(float(found.radius)):.6f}",
                   int(predicted == label), f"{time.perf_counter() - started:.4f}",
                   *found.counts[0].tolist()]  # fmt: skip
            log.write("\t".join(map(str, row)) + "\n")
            log.flush()
    return read_log(path)


def fingerprint(model: Any) -> str:
    """sha256 over a network's weights and buffers; the type's name for any other callable."""
    if not isinstance(model, nn.Module):
        return f"callable:{getattr(model, '__qualname__', type(model).__qualname__)}"
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _arithmetic(model: Any, images: Tensor) -> dict[str, str]:
    """What decides the last digits of the logits: kind of device, dtype, layout of the weights."""
    layout = "contiguous"
    if isinstance(model, nn.Module) and not all(p.is_contiguous() for p in model.parameters()):
        layout = "channels_last"
    return {"device": images.device.type, "dtype": str(images.dtype), "layout": layout}


def _noise_seed(seed: int, index: int) -> int:
    """One independent stream per (seed, image index)."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def _floor(radius: float) -> float:
    """A radius rounded down to 6 decimals: the log must never claim more than was certified."""
    down = math.floor(radius * 1e6) / 1e6
    return down if down <= radius else down - 1e-6


def _check_indices(chosen: list[int], images: Tensor, labels: Tensor) -> None:
    if len(images) != len(labels):
        raise ValueError(f"images and labels differ in length: {len(images)} and {len(labels)}")
    if len(set(chosen)) != len(chosen):
        raise ValueError("indices: expected each image at most once")
    wrong = [i for i in chosen if not 0 <= i < len(images)]
    if wrong:
        raise ValueError(f"indices={wrong[:3]}: expected 0 to {len(images) - 1}")


def _open_log(path: Path, settings: dict[str, Any], classes: int, *, resume: bool) -> set[int]:
    """Create the log, or cut a half-written last row off an existing one; returns finished rows."""
    sidecar = path.with_suffix(".json")
    header = "\t".join([*COLUMNS, *(f"count_{k}" for k in range(classes))]) + "\n"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        from trustml_helpers import __version__

        about = settings | {"torch": torch.__version__, "trustml_helpers": __version__}
        replace_file(sidecar, (json.dumps(about, indent=2) + "\n").encode())
        replace_file(path, header.encode())
        return set()
    if not resume:
        raise LogError(f"{path} exists: pass resume=True to go on with it, or another path")
    if not sidecar.exists():
        raise LogError(f"{sidecar} is missing, so the settings of {path} are not known; rename it")
    recorded = json.loads(sidecar.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if recorded.get(key) != value:
            raise LogError(
                f"{path} was made with {key}={recorded.get(key)!r}, not {value!r}: use the same "
                "settings, or another path"
            )
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if not whole.startswith(header):
        raise LogError(f"{path} does not begin with the expected header; rename it")
    if whole != text:
        replace_file(path, whole.encode())
    return {int(line.split("\t", 1)[0]) for line in whole.splitlines()[1:]}


def read_log(path: str | Path) -> pd.DataFrame:
    """A certification log as a table: this project's, or one of Cohen et al.'s format.

    Returns:
        Columns ``idx label predict radius correct time`` (time in seconds, whatever its format),
        then the counts if the log has them.

    Raises:
        LogError: if the file is missing or is not such a log.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise LogError(f"{path} is missing")
    try:
        table = pd.read_csv(path, sep="\t")
    except (ValueError, pd.errors.ParserError) as error:
        raise LogError(f"{path} is not a certification log ({error})") from error
    if tuple(table.columns[:6]) != COLUMNS:
        raise LogError(f"{path}: expected the columns {' '.join(COLUMNS)} first")
    if table["time"].dtype == object or str(table["time"].dtype).startswith("str"):
        # Cohen et al. write 0:00:17.123456, and some logs plain seconds.
        table["time"] = pd.to_timedelta(table["time"]).dt.total_seconds()
    return table


def certified_accuracy(log: pd.DataFrame, radii: ArrayLike) -> NDArray[np.float64]:
    """Share of all rows that are correct with a radius of at least r, for each r.

    Source: Cohen et al. (2019), section 4: the certified test accuracy at radius r.
    """
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
    """
    import pandas as pd

    rows = {}
    for name, log in logs.items():
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
    return np.where(log["correct"] == 1, log["radius"], 0.0)
