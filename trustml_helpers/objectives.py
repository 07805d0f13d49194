"""What training minimises: every objective is a function ``(model, x, y) -> loss``, a scalar.

First those against attacks, then those for networks that are to be smoothed: losses of several
noisy copies, never clipped to [0, 1], meant over the images of a minibatch. Whatever an objective
draws comes from a generator that it was given, so the global one is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trustml_helpers._support.arguments import SIGMA, declared, function, kind, maybe, number, whole
from trustml_helpers._support.calling import logits_of, unchanged
from trustml_helpers._support.randomness import draw
from trustml_helpers._support.tensors import BOUNDS, LABELS, TENSOR, labels_are_classes
from trustml_helpers.attacks import (
    Attack,
    Bounds,
    check_attacked,
    columns,
    log_mean_softmax,
    pgd,
    threat,
)

Objective = Callable[[Any, Tensor, Tensor], Tensor]

_WEIGHT = number("[0, inf)")
_NOISE = number("[0, inf)", "in pixel units")
_OWN = kind("a torch.Generator of its own", torch.Generator)
_ATTACK = function("(model, x, y) -> x_adv")
_called = declared(x=TENSOR, y=TENSOR)


@dataclass(frozen=True)
class ByEpoch:
    """An objective that changes during training, for example to let eps grow.

    Args:
        at: function of the epoch (0.0 at the start, 1.5 in the middle of the second pass) that
            returns the objective to use then.

    >>> switch = ByEpoch(lambda epoch: standard if epoch < 2 else adversarial(lambda m, x, y: x))
    >>> switch.at(0.5) is standard
    True
    """

    at: Callable[[float], Objective]


@_called
def standard(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy on the images as they are.

    Args:
        model: images to logits ``(n, K)``.
        x, y: images ``(n, C, H, W)`` and labels int64 ``(n,)``.

    Returns:
        The loss, a scalar that can be differentiated.

    >>> standard(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """
    return _cross_entropy(logits_of(model, x), y)


@declared(attack=_ATTACK)
def adversarial(attack: Attack) -> Objective:
    """Mean cross-entropy on attacked images: the inner maximum of min-max training.

    The attack's images are constants of the loss (Danskin's theorem), so only the model's
    parameters receive a gradient.

    Args:
        attack: ``(model, x, y) -> x_adv``, for example ``partial(pgd, eps=0.3, keep="last")``.

    Source: Madry et al. (2018), equation 2.1; with FGSM, Goodfellow et al. (2015).

    >>> objective = adversarial(lambda model, x, y: 2 * x)
    >>> objective(lambda x: x, torch.eye(2), torch.tensor([0, 1]))
    tensor(0.1269)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return standard(model, check_attacked(attack(model, x, y), x), y)

    return objective


@declared(attack=_ATTACK, clean_share=number("[0, 1]", "a share"))
def mixed(attack: Attack, clean_share: float = 0.5) -> Objective:
    """Adversarial training in which a share of every minibatch stays clean.

    The first ``round(clean_share * n)`` examples of the (shuffled) minibatch are used as they
    are, the others are attacked; the loss is the mean over all of them.

    Args:
        attack: as for :func:`adversarial`.
        clean_share: in [0, 1]; 0 is adversarial training, 1 is standard training.

    Source: the mixture of Goodfellow et al. (2015), section 6, taken over examples.

    >>> objective = mixed(lambda model, x, y: -x, clean_share=0.5)
    >>> objective(lambda x: x, torch.eye(2), torch.tensor([0, 1]))
    tensor(0.8133)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        clean = round(clean_share * len(x))
        if clean < len(x):
            attacked = check_attacked(attack(model, x[clean:], y[clean:]), x[clean:])
            x = torch.cat([x[:clean], attacked])
        return standard(model, x, y)

    return objective


@declared(
    **{name: rule for name, rule in threat("norm", "generator").items() if name not in "xy"},
    beta=_WEIGHT, steps=whole(), step_size=maybe(_NOISE),
)  # fmt: skip
def trades(
    eps: float, beta: float = 6.0, *, norm: str = "linf", bounds: Bounds = (0, 1), steps: int = 10,
    step_size: float | None = None, generator: torch.Generator | None = None,
) -> Objective:  # fmt: skip
    """TRADES: cross-entropy on clean images, plus how far an attack can move the prediction.

    The loss is ``CE(f(x), y) + beta * KL(f(x) || f(x_adv))``, where x_adv maximises the second
    term. The clean logits are computed once and serve all three: a call costs one clean pass,
    ``steps`` passes of the attack and one attacked pass.

    Args:
        eps, norm, bounds, steps, step_size: of the inner attack, as for :func:`attacks.pgd`.
        beta: weight of the second term, at least 0.
        generator: source of the start, Gaussian of standard deviation 0.001 around x (at x itself
            the divergence has no gradient); fresh entropy if not given.

    Source: Zhang et al. (2019), "Theoretically principled trade-off between robustness and
    accuracy", equation 5 and algorithm 1.

    >>> loss = trades(0.0, 6.0)(lambda x: x, torch.zeros(2, 10), torch.tensor([0, 1]))
    >>> loss.round(decimals=4)
    tensor(2.3026)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        logits = logits_of(model, x)
        clean = logits.log_softmax(1)
        fixed = clean.detach()

        def moved(now: Tensor, _: Tensor) -> Tensor:
            return F.kl_div(now.log_softmax(1), fixed, log_target=True, reduction="none").sum(1)

        x_adv = pgd(
            model, x, y, eps, norm=norm, bounds=bounds, steps=steps, step_size=step_size,
            start=x + 0.001 * draw(x, torch.randn, generator), loss=moved, keep="last",
        )  # fmt: skip
        attacked = logits_of(model, x_adv).log_softmax(1)
        divergence = F.kl_div(attacked, clean, log_target=True, reduction="batchmean")
        return _cross_entropy(logits, y) + beta * divergence

    return objective


@declared(
    objective=function("(model, x, y) -> loss"), weights=function("(x, y) -> weights (n,)"),
    generator=_OWN,
)  # fmt: skip
def reweighted(
    objective: Objective, weights: Callable[[Tensor, Tensor], Tensor], *,
    generator: torch.Generator,
) -> Objective:  # fmt: skip
    """Another objective on a minibatch drawn anew, with replacement, by the weight of each example.

    Args:
        objective: ``(model, x, y) -> loss``.
        weights: ``(x, y) -> (n,)``, at least 0; what weighs 0 is discarded, unless all do.
        generator: of the draw.

    Source: Sun et al. (2025), "Average certified radius is a poor metric for randomized
    smoothing", section 5: weights by how certain a network already is.

    >>> objective = reweighted(standard, lambda x, y: y.float(), generator=torch.Generator())
    >>> objective(lambda x: x, torch.tensor([[9.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    tensor(0.6931)
    """

    @_called
    def drawn(model: Any, x: Tensor, y: Tensor) -> Tensor:
        chances = weights(x, y).double()
        chances = torch.where(chances.any(), chances, torch.ones_like(chances))
        which = torch.multinomial(chances, len(x), replacement=True, generator=generator)
        return objective(model, x[which], y[which])

    return drawn


# --- under noise ----------------------------------------------------------------------------------


@declared(sigma=_NOISE, generator=_OWN)
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


@declared(noise=function("(x, generator) -> noisy copies"), generator=_OWN)
def noisy(
    noise: Callable[[Tensor, torch.Generator], Tensor], *, generator: torch.Generator
) -> Objective:
    """Mean cross-entropy on one fresh noisy copy of each image, under noise of any kind.

    Args:
        noise: ``(x, generator) -> copies``, such as ``smoothing.Ablation(45)``.
        generator: source of the noise; drawn from at every call.

    Source: Cohen et al. (2019), section 3.3; for ablation Levine & Feizi (2020), section 4.

    >>> objective = noisy(lambda x, generator: 2 * x, generator=torch.Generator())
    >>> objective(lambda x: x, torch.eye(2), torch.tensor([0, 1]))
    tensor(0.1269)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return standard(model, noise(x, generator), y)

    return objective


@declared(sigma=_NOISE, lam=_WEIGHT, generator=_OWN)
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

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        clean = _widened(logits_of(model, x))
        noisy = _logits_under(_noise(x, 1, sigma, generator), model, x)[:, 0]
        return _cross_entropy(clean, y) + lam * F.cross_entropy(noisy, clean.softmax(1))

    return objective


@declared(sigma=_NOISE, lam=_WEIGHT, eta=_WEIGHT, samples=whole(1), generator=_OWN)
def consistency(
    sigma: float, lam: float, eta: float = 0.5, *, samples: int = 2, generator: torch.Generator,
) -> Objective:  # fmt: skip
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

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise = _noise(x, samples, sigma, generator)
        return _consistency(_logits_under(noise, model, x), y, lam, eta)

    return objective


@declared(
    sigma=SIGMA, eps=_NOISE, lam=_WEIGHT, eta=_WEIGHT, samples=whole(1), steps=whole(1),
    bounds=BOUNDS, generator=_OWN,
)  # fmt: skip
def smoothadv(
    sigma: float, eps: float, lam: float = 0.0, eta: float = 0.0, *, samples: int = 4,
    steps: int = 10, bounds: Bounds = (0, 1), generator: torch.Generator,
) -> Objective:  # fmt: skip
    """SmoothAdv: Gaussian training at points that an l2 attack on the smoothed network has found.

    The attack starts at x and ascends the loss of the mean softmax over ``samples`` noisy copies,
    with the noise of each image fixed; the same noise is then added to the attacked image to train
    on. One call costs ``samples * (steps + 1)`` forward and backward passes.

    Args:
        sigma, generator: as for :func:`gaussian`.
        eps: radius of the l2 ball, in pixel units.
        lam, eta: weights of consistency regularisation on the attacked copies; none by default.
        samples: noisy copies per image, in the attack and in the loss.
        steps: of the attack, each of length ``2 * eps / steps``.
        bounds: of the attacked image before the noise.

    Source: Salman et al. (2019), "Provably robust deep learning via adversarially trained smoothed
    classifiers"; with lam, Jeong & Shin (2020), whose program is followed: a step scales back to
    the ball and then clips to the bounds.

    >>> objective = smoothadv(0.5, 1.0, generator=torch.Generator())
    >>> objective(lambda x: 0 * x, torch.zeros(2, 10), torch.tensor([0, 1]))
    tensor(2.3026)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise = _noise(x, samples, sigma, generator)
        x_adv = _climb(model, x, y, noise, 2 * eps / steps, steps, bounds, eps)[-1]
        return _consistency(_logits_under(noise, model, x_adv), y, lam, eta)

    return objective


@declared(sigma=_NOISE, lam=_WEIGHT, gamma=_WEIGHT, beta=_WEIGHT, samples=whole(1), generator=_OWN)
def macer(
    sigma: float, lam: float, gamma: float = 8.0, beta: float = 16.0, *, samples: int = 16,
    generator: torch.Generator,
) -> Objective:  # fmt: skip
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

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        logits = _logits_under(_noise(x, samples, sigma, generator), model, x)
        loss = _negative_log(log_mean_softmax(logits), y)
        if lam == 0:
            return loss
        # In float64: in float32 a share within 6e-8 of 1 is 1, and its quantile infinite.
        shares = (beta * logits.double()).softmax(2).mean(1)
        top, which = shares.topk(2)
        z = torch.special.ndtri(top[(which[:, 0] == y) & (top[:, 0] < 1) & (top[:, 1] > 0)])
        hinge = (gamma - (z[:, 0] - z[:, 1])).clamp(min=0).sum() / len(y)
        return loss + lam * sigma / 2 * hinge.to(loss.dtype)

    return objective


@declared(
    sigma=SIGMA, eta=_WEIGHT, samples=whole(1), steps=whole(1), step_size=_NOISE,
    warm=number("[0, 1]", "a share"), bounds=BOUNDS, generator=_OWN,
)  # fmt: skip
def smoothmix(
    sigma: float, eta: float = 5.0, *, samples: int = 4, steps: int = 4, step_size: float = 1.0,
    warm: float = 1.0, bounds: Bounds = (0, 1), generator: torch.Generator,
) -> Objective:  # fmt: skip
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

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise = _noise(x, samples, sigma, generator)
        way = _climb(model, x, y, noise, step_size, steps, bounds)
        near = x + (way[0] - x).renorm(2, 0, warm * step_size)

        log_p = _logits_under(noise, model, near).log_softmax(2)
        mean = log_p.exp().mean(1)
        share = 0.5 * draw(mean[:, 0].detach(), torch.rand, generator)
        mixed = torch.lerp(near, way[-1], columns(share, x))
        target = torch.lerp(mean, torch.full_like(mean, 1 / mean.shape[1]), share[:, None])
        log_q = _logits_under(noise, model, mixed).log_softmax(2).mean(1)
        apart = (torch.special.xlogy(target, target) - target * log_q).sum(1)
        right = mean.argmax(1) == y
        return _each(log_p, y) + eta * warm * (right * apart).mean()

    return objective


@declared(
    sigma=SIGMA, teacher=function("images to probabilities (n, K)"), lam=_WEIGHT, eps=_NOISE,
    samples=whole(1), steps=whole(1), generator=_OWN,
)  # fmt: skip
def cat_rs(
    sigma: float, teacher: Callable[[Tensor], Tensor], lam: float = 1.0, *, eps: float = 1.0,
    samples: int = 4, steps: int = 4, generator: torch.Generator,
) -> Objective:  # fmt: skip
    """CAT-RS: confident images learn from their worst noise, the others from their easiest.

    Of the cross-entropies of the noisy copies of an image only the k smallest count, summed and
    divided by ``samples``; k, at least 1, is binomial with the share of copies that are right. If
    k is all of them, ``lam`` times the largest ``KL(p || f(x + noise'))`` is added: p is what the
    teacher says of x, and noise' the noise moved within an l2 ball, uphill, its mean and its root
    mean square kept.

    Args:
        sigma, generator: as for :func:`gaussian`.
        teacher: from x to p; the authors take the shares of 10,000 votes of a network trained by
            :func:`gaussian` at sigma 0.25.
        lam: weight of the divergence, at least 0.
        eps: how far noise' may be from the noise, l2 in pixel units.
        samples: noisy copies per image.
        steps: of the attack on the noise, each of length ``2 * eps / steps``.

    Source: Jeong, Kim, Shin (2023), "Confidence-aware training of smoothed classifiers for
    certified robustness", section 3.

    >>> objective = cat_rs(0.5, lambda x: torch.eye(10)[:2], generator=torch.Generator())
    >>> objective(lambda x: 0 * x, torch.zeros(2, 10), torch.tensor([0, 0]))
    tensor(4.6052)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        noise, p = _noise(x, samples, sigma, generator), teacher(x).detach()[:, None]

        def apart(noise: Tensor) -> Tensor:
            log_q = _logits_under(noise, model, x).log_softmax(2)
            return (torch.special.xlogy(p, p) - p * log_q).sum(2)

        with unchanged(model):
            worse = _worse_noise(noise, apart, eps, steps)
        logits = _logits_under(noise, model, x)
        each = _each(logits.log_softmax(2), y, "none").view(-1, samples)
        right = (logits.argmax(2) == y[:, None]).float().mean(1)
        all_of_them = torch.full_like(right, samples)
        kept = torch.binomial(all_of_them, right, generator=generator).clamp(min=1)
        counted = torch.arange(samples, device=x.device) < kept[:, None]
        easiest = (each.sort(1).values * counted).mean(1)
        return (easiest + lam * (kept == samples) * apart(worse).amax(1)).mean()

    return objective


@declared(sigma=SIGMA, classifier=maybe(function("images to logits")), generator=_OWN)
def denoising(sigma: float, classifier: Any = None, *, generator: torch.Generator) -> Objective:
    """What a denoiser ``(noisy images, sigma) -> images`` minimises; labels are not used.

    Every image gets noise of its own size, uniform in [0, sigma]. Without a classifier the loss is
    the mean squared error of a pixel. With one it is the cross-entropy of its logits for the
    denoised image, towards its answer for the clean one: what matters is that it keeps its mind.

    Args:
        sigma: largest standard deviation of the noise, above 0, in pixel units.
        classifier: left as found; used in eval mode.
        generator: as for :func:`gaussian`.

    Source: Salman et al. (2020), "Denoised smoothing", section 3.2: MSE and stability; there one
    denoiser for each sigma.

    >>> objective = denoising(1.0, lambda x: x.flatten(1), generator=torch.Generator())
    >>> objective(lambda x, sigma: 0 * x, torch.zeros(2, 1, 1, 10), torch.zeros(2).long())
    tensor(2.3026)
    """

    @_called
    def objective(model: Any, x: Tensor, y: Tensor) -> Tensor:
        sizes = sigma * draw(x.new_empty(len(x)), torch.rand, generator)
        clean = model(x + columns(sizes, x) * draw(x, torch.randn, generator), sizes)
        if classifier is None:
            return F.mse_loss(clean, x)
        with unchanged(classifier):
            for parameter in getattr(classifier, "parameters", list)():
                parameter.requires_grad_(False)  # its gradients are nobody's
            answer = logits_of(classifier, x).argmax(1)
            return F.cross_entropy(logits_of(classifier, clean), answer)

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


def _each(log_p: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Mean cross-entropy of the single copies, from log-probabilities ``(n, samples, K)``."""
    return _negative_log(log_p.flatten(0, 1), y.repeat_interleave(log_p.shape[1]), reduction)


def _climb(
    model: Any, x: Tensor, y: Tensor, noise: Tensor, length: float, steps: int, bounds: Bounds,
    eps: float = math.inf,
) -> list[Tensor]:  # fmt: skip
    """The points of a way from x up the loss of the mean softmax under this noise."""

    def loss(z: Tensor) -> Tensor:
        return _negative_log(log_mean_softmax(_logits_under(noise, model, z)), y, "none")

    points = [x]
    with unchanged(model):
        for _ in range(steps):
            way = points[-1] + length * _uphill(loss, points[-1], 1) - x
            z = x + way.renorm(2, 0, eps)
            points.append(z if bounds is None else z.clamp(*bounds))
    return points[1:]


def _worse_noise(noise: Tensor, loss: Callable[[Tensor], Tensor], eps: float, steps: int) -> Tensor:
    """Noise ``(n, samples, ...)``, each copy moved by at most about eps up its own loss."""
    each = tuple(range(2, noise.ndim))
    mean, rms = noise.mean(each, keepdim=True), noise.square().mean(each, keepdim=True).sqrt()
    now = noise
    for _ in range(steps):
        way = now + 2 * eps / steps * _uphill(loss, now, 2) - noise
        now = noise + way.flatten(0, 1).renorm(2, 0, eps).view_as(noise)
        now = (now - now.mean(each, keepdim=True)) / now.square().mean(each, keepdim=True).sqrt()
        now = mean + rms * now
    return now


def _uphill(loss: Callable[[Tensor], Tensor], z: Tensor, lead: int) -> Tensor:
    """The gradient of the summed loss, of length 1 for each index of the leading dimensions."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z).sum(), z)
    size = gradient.flatten(lead).norm(dim=lead)
    return gradient / (size.view(*size.shape, *[1] * (z.ndim - lead)) + 1e-8)


def _noise(x: Tensor, samples: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Fresh noise ``(n, samples, ...)``, for every image its own."""
    return sigma * draw(x.new_empty(len(x), samples, *x.shape[1:]), torch.randn, generator)


def _logits_under(noise: Tensor, model: Any, x: Tensor) -> Tensor:
    """Logits ``(n, samples, K)`` of the noisy copies, in one pass."""
    logits = logits_of(model, (x[:, None] + noise).flatten(0, 1))
    return _widened(logits).unflatten(0, noise.shape[:2])


def _widened(logits: Tensor) -> Tensor:
    """In float32 at least: sums of exponentials need its digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The usual loss; labels, or shares of classes ``(n, K)``, that do not fit are named."""
    if y.is_floating_point() and y.shape == logits.shape:
        return F.cross_entropy(logits, y)
    labels_are_classes(logits, LABELS("y", y))
    return F.cross_entropy(logits, y.long())


def _negative_log(log_p: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """:func:`_cross_entropy` from log-probabilities ``(n, K)``."""
    labels_are_classes(log_p, LABELS("y", y))
    return F.nll_loss(log_p, y.long(), reduction=reduction)
