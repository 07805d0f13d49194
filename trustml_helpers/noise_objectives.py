"""What training minimises if the network is to be smoothed: losses of several noisy copies.

Noisy images are never clipped to [0, 1]. Every objective draws its noise from a generator of its
own, fresh at each call, and takes the mean over the images of a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trustml_helpers.attacks import pgd_smoothed
from trustml_helpers.bounds import check_sigma
from trustml_helpers.losses import (
    check_tensors,
    log_mean_softmax,
    mean_cross_entropy,
    mean_negative_log,
)
from trustml_helpers.models import logits_of
from trustml_helpers.norms import NORMS, Bounds, columns, draw

Objective = Callable[[Any, Tensor, Tensor], Tensor]


def gaussian(sigma: float, *, generator: torch.Generator) -> Objective:
    """Mean cross-entropy on images with fresh Gaussian noise of standard deviation ``sigma``.

    Args:
        sigma: standard deviation in pixel units, at least 0.
        generator: source of the noise; drawn from at every call.

    Source: Cohen et al. (2019), section 3.3.

    >>> objective = gaussian(0.0, generator=torch.Generator())
    >>> objective(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """
    return consistency(sigma, 0.0, 0.0, samples=1, generator=generator)


def stability(sigma: float, lam: float = 2.0, *, generator: torch.Generator) -> Objective:
    """Stability training: learn from the clean image, and predict the same under noise.

    The loss is ``CE(f(x), y) + lam * H(softmax f(x), softmax f(x + noise))`` with the cross-entropy
    H of two distributions, ``-sum_c p_c log q_c``; both receive a gradient.

    Args:
        sigma, generator: as for :func:`gaussian`.
        lam: weight of the second term, at least 0.

    Source: Li et al. (2019), "Certified adversarial robustness with additive noise"; form and
    weight as compared by Jeong & Shin (2020).

    >>> objective = stability(0.0, generator=torch.Generator())
    >>> objective(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1])) / 3
    tensor(2.3026)
    """
    _check(sigma, 1, lam=lam)

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        check_tensors(x=x)
        clean = _widened(logits_of(model, x))
        noisy = _logits_under(_noise(x, 1, sigma, generator), model, x)[:, 0]
        return mean_cross_entropy(clean, y) + lam * F.cross_entropy(noisy, clean.softmax(1))

    return objective


def consistency(
    sigma: float,
    lam: float,
    eta: float = 0.5,
    *,
    samples: int = 2,
    generator: torch.Generator,
) -> Objective:
    """Consistency regularisation: noisy copies of an image should get the same confident answer.

    With p_i the softmax of noisy copy i and p their mean, the loss is the mean over i of
    ``CE(p_i, y) + lam * KL(p || p_i)``, plus ``eta`` times the entropy of p.

    Args:
        sigma, generator: as for :func:`gaussian`.
        lam: weight of the divergence, at least 0.
        eta: weight of the entropy, at least 0.
        samples: noisy copies per image.

    Source: Jeong & Shin (2020), "Consistency regularization for certified robustness of smoothed
    classifiers".

    >>> objective = consistency(0.0, 10.0, 1.0, generator=torch.Generator())
    >>> objective(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1])) / 2
    tensor(2.3026)
    """
    _check(sigma, samples, lam=lam, eta=eta)

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise = _noise(x, samples, sigma, generator)
        return _consistency(_logits_under(noise, model, x), y, lam, eta)

    return objective


def smoothadv(
    sigma: float,
    eps: float,
    lam: float = 0.0,
    eta: float = 0.0,
    *,
    samples: int = 4,
    steps: int = 10,
    bounds: Bounds = (0, 1),
    generator: torch.Generator,
) -> Objective:
    """SmoothAdv: Gaussian training at points that an l2 attack on the smoothed network has found.

    The attack ascends the loss of the mean softmax over ``samples`` noisy copies, with the noise
    of each image fixed; the same noise is then added to the attacked image to train on. One call
    costs ``samples * (steps + 1)`` forward and backward passes.

    Args:
        sigma, generator: as for :func:`gaussian`; the generator also gives the attack's start.
        eps: radius of the l2 ball, in pixel units.
        lam, eta: weights of consistency regularisation on the attacked copies; none by default.
        samples: noisy copies per image, in the attack and in the loss.
        steps: of the attack, each of length ``2 * eps / steps``.
        bounds: of the attacked image before the noise.

    Source: Salman et al. (2019), "Provably robust deep learning via adversarially trained smoothed
    classifiers"; with lam, Jeong & Shin (2020).

    >>> objective = smoothadv(0.5, 1.0, generator=torch.Generator())
    >>> objective(lambda x: 0 * x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """
    check_sigma(sigma)
    _check(sigma, samples, steps, eps=eps, lam=lam, eta=eta)

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise = _noise(x, samples, sigma, generator)
        x_adv = pgd_smoothed(
            model, x, y, eps, sigma, noise=noise, bounds=bounds, steps=steps,
            step_size=2 * eps / steps, keep="last", generator=generator,
        )  # fmt: skip
        return _consistency(_logits_under(noise, model, x_adv), y, lam, eta)

    return objective


def macer(
    sigma: float,
    lam: float,
    gamma: float = 8.0,
    beta: float = 16.0,
    *,
    samples: int = 16,
    generator: torch.Generator,
) -> Objective:
    """MACER: cross-entropy of the soft smoothed classifier, minus the radius it would certify.

    The first term is ``-log mean_i softmax(f(x + noise_i))[y]``. For images that the soft vote
    with inverse temperature ``beta`` gets right, with mean probabilities p_y and p_2 (the largest
    other), the second is ``lam * sigma / 2 * max(0, gamma - (z_y - z_2))``, z the normal
    quantiles. Quantiles that are not finite drop out, as in the authors' program.

    Args:
        sigma, generator: as for :func:`gaussian`.
        lam: weight of the second term, at least 0.
        gamma: where the hinge ends; larger radii are not rewarded.
        beta: inverse temperature of the soft vote, above 0.
        samples: noisy copies per image.

    Source: Zhai et al. (2020), "MACER: attack-free and scalable robust training via maximizing
    certified radius", algorithm 1.

    >>> objective = macer(1.0, 0.0, generator=torch.Generator())
    >>> objective(lambda x: 0 * x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """
    _check(sigma, samples, lam=lam, gamma=gamma, beta=beta)

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        logits = _logits_under(_noise(x, samples, sigma, generator), model, x)
        loss = mean_negative_log(log_mean_softmax(logits), y)
        if lam == 0:
            return loss
        # In float64: in float32 a share within 6e-8 of 1 is 1, and its quantile infinite.
        shares = (beta * logits.double()).softmax(2).mean(1)
        top, which = shares.topk(2)
        z = torch.special.ndtri(top[(which[:, 0] == y) & (top[:, 0] < 1) & (top[:, 1] > 0)])
        hinge = (gamma - (z[:, 0] - z[:, 1])).clamp(min=0).sum() / len(y)
        return loss + lam * sigma / 2 * hinge.to(loss.dtype)

    return objective


def smoothmix(
    sigma: float,
    eta: float = 5.0,
    *,
    samples: int = 4,
    steps: int = 4,
    step_size: float = 1.0,
    warm: float = 1.0,
    bounds: Bounds = (0, 1),
    generator: torch.Generator,
) -> Objective:
    """SmoothMix with the one-step adversary: predictions fade towards "no idea" along an attack.

    An l2 attack without a ball leads away from x. Its first point replaces x in the cross-entropy;
    between that point and the last one, a random mixture (at most half of the last) should be
    predicted as the same mixture of the mean prediction p and the uniform distribution. This
    second term counts only for images where p is right.

    Args:
        sigma, generator: as for :func:`gaussian`; the generator also draws the mixture.
        eta: weight of the second term.
        samples: noisy copies per image, the same in the attack and in the loss.
        steps, step_size: of the attack, lengths in pixel units.
        warm: in [0, 1], scales ``eta`` and the length of the first step; grows in training.
        bounds: of the attacked image before the noise.

    Source: Jeong et al. (2021), "SmoothMix: training confidence-calibrated smoothed classifiers
    for certified robustness".

    >>> objective = smoothmix(0.5, generator=torch.Generator())
    >>> objective(lambda x: 0 * x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """
    check_sigma(sigma)
    _check(sigma, samples, steps, eta=eta, step_size=step_size, warm=warm)

    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise = _noise(x, samples, sigma, generator)
        attack = partial(pgd_smoothed, model, x, y, steps * step_size, sigma, noise=noise,
                         bounds=bounds, step_size=step_size, keep="last")  # fmt: skip
        one = attack(steps=1, random_start=False)
        last = attack(steps=steps - 1, start=one) if steps > 1 else one
        near = NORMS["l2"].projection(x, warm * step_size, bounds)(one)

        log_p = _logits_under(noise, model, near).log_softmax(2)
        mean = log_p.exp().mean(1)
        share = 0.5 * draw(mean[:, 0].detach(), torch.rand, generator)
        mixed = torch.lerp(near, last, columns(share, x))
        target = torch.lerp(mean, torch.full_like(mean, 1 / mean.shape[1]), share[:, None])
        log_q = _logits_under(noise, model, mixed).log_softmax(2).mean(1)
        apart = (torch.special.xlogy(target, target) - target * log_q).sum(1)
        right = mean.argmax(1) == y
        return _each(log_p, y) + eta * warm * (right * apart).mean()

    return objective


def _consistency(logits: Tensor, y: Tensor, lam: float, eta: float) -> Tensor:
    """The loss of :func:`consistency` from logits ``(n, samples, K)``."""
    log_p = logits.log_softmax(2)
    loss = _each(log_p, y)
    if lam == 0 and eta == 0:
        return loss
    mean = log_p.exp().mean(1)
    log_mean = log_mean_softmax(logits)
    entropy = -(mean * log_mean).sum(1).mean()
    divergence = (mean * (log_mean - log_p.mean(1))).sum(1).mean()
    return loss + lam * divergence + eta * entropy


def _each(log_p: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of the single copies, from log-probabilities ``(n, samples, K)``."""
    check_tensors(y=y)
    return mean_negative_log(log_p.flatten(0, 1), y.repeat_interleave(log_p.shape[1]))


def _noise(x: Tensor, samples: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Fresh noise ``(n, samples, ...)``, for every image its own."""
    check_tensors(x=x)
    return sigma * draw(x.new_empty(len(x), samples, *x.shape[1:]), torch.randn, generator)


def _logits_under(noise: Tensor, model: Any, x: Tensor) -> Tensor:
    """Logits ``(n, samples, K)`` of the noisy copies, in one pass."""
    logits = logits_of(model, (x[:, None] + noise).flatten(0, 1))
    return _widened(logits).unflatten(0, noise.shape[:2])


def _widened(logits: Tensor) -> Tensor:
    """In float32 at least: sums of exponentials need its digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(sigma: float, samples: int, steps: int = 1, **weights: float) -> None:
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma}: expected a finite number >= 0, in pixel units")
    for name, count in {"samples": samples, "steps": steps}.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: expected a finite number >= 0")
