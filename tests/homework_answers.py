"""Answers to the homework that students might give: right ones in several styles, wrong ones.

``RIGHT[task]`` is a list of functions; ``WRONG[task]`` maps a part of the message that must come
to the function that must get it. Each is written as a student would, without the package.
"""

from __future__ import annotations

import contextlib
import copy
import math
from functools import partial

import beyond_answers
import homework_new
import numpy as np
import torch
import torch.nn.functional as F
from beyond_answers import with_options
from scipy import optimize, stats
from scipy.stats import beta, binomtest, norm
from torch import nn


def grad(model, x, y, own=False, softmax=False):
    x = x.clone().requires_grad_()
    z = model(x)
    y = z.argmax(1) if own else y
    return torch.autograd.grad(F.cross_entropy(z.softmax(1) if softmax else z, y), x)[0]


# --- 1 linear attack ------------------------------------------------------------------------------


def linear(w, b, x, y, eps, norm):
    step = w.sign() if norm == "linf" else w / w.norm()
    return x - eps * y[:, None] * step


def linear_loop(w, b, x, y, eps, norm):
    out = []
    for row, label in zip(x.double().numpy(), y.double().numpy(), strict=True):
        v = w.double().numpy()
        # where a weight is 0 the pixel may go anywhere
        step = np.where(v >= 0, 1, -1) if norm == "linf" else v / np.sqrt((v**2).sum())
        out.append(row - eps * label * step)
    return np.array(out)


def linear_by_gradient(w, b, x, y, eps, norm):
    delta = torch.zeros_like(x, requires_grad=True)
    (y * ((x + delta) @ w + b)).sum().backward()
    g = delta.grad
    if norm == "linf":
        return x - eps * torch.sign(g)
    return x - eps * g / g.norm(dim=1, keepdim=True)


def linear_by_table(w, b, x, y, eps, norm):
    """Lists, row by row."""
    length = {"linf": 1.0, "l2": math.sqrt(sum(v * v for v in w.tolist()))}[norm]
    step = [math.copysign(1, v) if norm == "linf" else v / length for v in w.tolist()]
    return torch.tensor([
        [a - eps * label * s for a, s in zip(row, step, strict=True)]
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    ])  # fmt: skip


def linear_with(step):
    return lambda w, b, x, y, eps, norm: x - eps * y[:, None] * step(w, norm)


# --- 2 FGSM ---------------------------------------------------------------------------------------


def fgsm(model, x, y, eps):
    return (x + eps * grad(model, x, y).sign()).clamp(0, 1)


def fgsm_loop(model, x, y, eps):
    rows = []
    for image, label in zip(x, y, strict=True):
        image = image[None].detach().clone()
        image.requires_grad = True
        torch.nn.CrossEntropyLoss()(model(image), label[None]).backward()
        with torch.no_grad():
            rows.append(torch.clip(image + eps * torch.sign(image.grad), min=0, max=1))
    return torch.cat(rows)


def fgsm_in_train_mode(model, x, y, eps):
    model.train()
    return fgsm(model, x, y, eps)


def fgsm_in_eval_mode(model, x, y, eps):
    model.eval()
    return fgsm(model, x, y, eps)


def fgsm_in_place(model, x, y, eps):
    x += eps * grad(model, x, y).sign()
    return x.clamp_(0, 1)


def fgsm_from_the_package(model, x, y, eps):
    from trustml_helpers import attacks

    return attacks.fgsm(model, x, y, eps)


# --- 3 PGD ----------------------------------------------------------------------------------------


def pgd(model, x, y, eps, step_size, steps, start, fault=""):
    z = x + (start if fault == "first" else start.clamp(-eps, eps))
    points = [z.clamp(0, 1)]
    for _ in range(steps):
        z = points[-1]
        g = grad(model, z, y, own=fault == "own", softmax=fault == "softmax")
        delta = z + (-step_size if fault == "down" else step_size) * g.sign() - x
        delta = delta if fault == "project" else delta.clamp(-eps, eps)
        points.append((x + delta).clamp(0, 1))
    if fault != "best":
        return points[-1]
    with torch.no_grad():
        losses = [F.cross_entropy(model(z), y, reduction="none") for z in points]
    return torch.stack(points)[torch.stack(losses).argmax(0), torch.arange(len(y))]


def pgd_mode(model, *rest):
    model.eval()
    return pgd(model, *rest)


def pgd_bounds(model, x, y, eps, step_size, steps, start, size=1):
    """Ball and range as one interval for every pixel."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    z = torch.clamp(x + start, low, high)
    for _ in range(steps):
        z = torch.clamp(z + size * step_size * grad(model, z, y).sign(), low, high)
    return z


def pgd_along_gradient(model, x, y, eps, step_size, steps, start):
    z = torch.clamp(x + start, x - eps, x + eps).clamp(0, 1)
    for _ in range(steps):
        z = torch.clamp(z + step_size * grad(model, z, y), x - eps, x + eps).clamp(0, 1)
    return z


def towards(model, x, target, eps, step_size, steps, fault=""):
    """The reference, with a step downhill."""
    return pgd(model, x, target, eps, -step_size, steps, torch.zeros_like(x), fault)


def towards_bounds(model, x, target, eps, step_size, steps):
    return pgd_bounds(model, x, target, eps, -step_size, steps, torch.zeros_like(x))


def towards_unclipped(model, x, target, eps, step_size, steps):
    z = x
    for _ in range(steps):
        z = torch.clamp(z - step_size * grad(model, z, target).sign(), x - eps, x + eps)
    return z


def pgd_bare_start(model, x, y, eps, step_size, steps, start):
    z = x + start
    for _ in range(steps):
        z = torch.clamp(z + step_size * grad(model, z, y).sign(), x - eps, x + eps).clamp(0, 1)
    return z


def pgd_l2_step(model, x, y, eps, step_size, steps, start):
    z = torch.clamp(x + start, x - eps, x + eps).clamp(0, 1)
    for _ in range(steps):
        step = step_size * F.normalize(grad(model, z, y).flatten(1)).view_as(x)
        z = torch.clamp(z + step, x - eps, x + eps).clamp(0, 1)
    return z


NORM_ORDERS = {"linf": torch.inf, "l2": 2, "l1": 1}


def steepest(w, norm):
    if norm != "l1":
        return w.sign() if norm == "linf" else w / w.norm()
    tip = torch.zeros_like(w)
    tip[w.abs().argmax()] = w[w.abs().argmax()].sign()
    return tip


def steepest_by_hand(w, norm):
    """Numbers and a list."""
    largest = max(abs(v) for v in w.tolist())
    length = sum(v * v for v in w.tolist()) ** 0.5
    if norm == "linf":
        return [1.0 if v > 0 else -1.0 for v in w.tolist()]
    if norm == "l2":
        return [v / length for v in w.tolist()]
    return [v / largest if abs(v) == largest else 0.0 for v in w.tolist()]


def fgsm_recording_on_x(model, x, y, eps):
    x.requires_grad_()
    F.cross_entropy(model(x), y).backward()
    return (x + eps * x.grad.sign()).clamp(0, 1)


# --- 4 training step ------------------------------------------------------------------------------


def step(model, optimizer, x, y, attack, *, fixed=True, clean=0.0, side=1, reduction="mean"):
    """The training step, or with one thing changed."""
    x_adv = attack(model, x, y)
    x_adv = x_adv.detach() if fixed else x_adv
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x_adv), y, reduction=reduction)
    if clean:
        loss = (1 - clean) * loss + clean * F.cross_entropy(model(x), y)
    (side * loss).backward()
    optimizer.step()
    return loss.item()


def step_by_hand(model, optimizer, x, y, attack):
    x_adv = torch.tensor(attack(model, x, y).tolist(), dtype=x.dtype)
    logits = model(x_adv)
    loss = -logits.log_softmax(1)[torch.arange(len(y)), y].mean()
    parameters = list(model.parameters())
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        p.grad = g
    optimizer.step()
    return loss


def step_clean(model, optimizer, x, y, attack):
    attack(model, x, y)
    return step(model, optimizer, x, y, lambda m, x, y: x)


def step_then_loss(model, optimizer, x, y, attack):
    x_adv = attack(model, x, y).detach()
    step(model, optimizer, x, y, lambda *_: x_adv)
    return F.cross_entropy(model(x_adv), y)


def step_without_zero(model, optimizer, x, y, attack):
    loss = F.cross_entropy(model(attack(model, x, y).detach()), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def step_zero_too_early(model, optimizer, x, y, attack):
    optimizer.zero_grad()
    return step_without_zero(model, optimizer, x, y, attack)


def step_in_train_mode(model, optimizer, x, y, attack):
    model.train()
    return step(model, optimizer, x, y, attack)


# --- 5 Danskin ------------------------------------------------------------------------------------


def central(f, w, h):
    g = torch.zeros_like(w)
    for i in range(len(w)):
        up, down = w.clone(), w.clone()
        up[i] += h
        down[i] -= h
        g[i] = (f(up) - f(down)) / (2 * h)
    return g


def central_rows(f, w, h):
    return np.array([
        float(f(w + e) - f(w - e)) / (2 * h) for e in h * torch.eye(len(w), dtype=w.dtype)
    ])  # fmt: skip


def forward_difference(f, w, h):
    return torch.stack([(f(w + e) - f(w)) / h for e in h * torch.eye(len(w), dtype=w.dtype)])


def central_without_brackets(f, w, h):
    return h**2 * central(f, w, h)


def central_without_copies(f, w, h):
    g = torch.zeros_like(w)
    for i in range(len(w)):
        up, down = w, w
        up[i] += h
        down[i] -= h
        g[i] = (f(up) - f(down)) / (2 * h)
    return g


def half_difference(f, w, h):
    return 2 * central(f, w, h)


def central_in_place(f, w, h):
    g = torch.zeros_like(w)
    for i in range(len(w)):
        w[i] += h
        up = f(w)
        w[i] -= 2 * h
        g[i] = (up - f(w)) / (2 * h)
    return g


def central_by_hand(f, w, h):
    """In Python's numbers, one weight after the other."""
    values = w.tolist()
    slopes = []
    for i in range(len(values)):
        ends = [w.new_tensor([v + side * h * (i == j) for j, v in enumerate(values)])
                for side in (1, -1)]  # fmt: skip
        slopes.append((float(f(ends[0])) - float(f(ends[1]))) / h / 2)
    return slopes


def central_restored(f, w, h):
    """In a copy that is moved there and back."""
    moved, g = w.detach().clone(), torch.empty_like(w)
    for i, value in enumerate(w):
        moved[i] = value + h
        up = f(moved)
        moved[i] = value - h
        g[i] = (up - f(moved)) / (2 * h)
        moved[i] = value
    return g


def exact(f, w, h):
    return torch.func.grad(f)(w)


def moved_together(f, w, h):
    return (f(w + h) - f(w - h)) / (2 * h) * torch.ones_like(w)


def trades(model, x, y, x_adv, beta):
    clean, moved = model(x), model(x_adv)
    kl = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, y) + beta * kl


def trades_with(
    swapped=False, weight=lambda beta: beta, attacked=False, over=lambda kl: kl.sum(1).mean(),
    fixed=False,
):  # fmt: skip
    def answer(model, x, y, x_adv, beta):
        p, q = model(x).softmax(1), model(x_adv).softmax(1)
        loss = F.cross_entropy(model(x_adv if attacked else x), y)
        p, q = (q, p) if swapped else (p, q)
        p = p.detach() if fixed else p
        return loss + weight(beta) * over(p * (p / q).log())

    return answer


def danskin(w, b, x, y, eps):
    z = x - eps * y[:, None] * w.sign()
    w = w.clone().requires_grad_()
    loss = F.softplus(-y * (z @ w + b)).mean()
    return torch.autograd.grad(loss, w)[0]


def danskin_formula(w, b, x, y, eps):
    total = torch.zeros_like(w)
    for row, label in zip(x, y, strict=True):
        z = row - eps * label * torch.sign(w)
        total -= label * torch.sigmoid(-label * (z @ w + b)) * z
    return total / len(x)


def danskin_closed(w, b, x, y, eps):
    """Not Danskin's way, but right: differentiate the closed form."""
    w = w.clone().requires_grad_()
    F.softplus(-y * (x @ w + b) + eps * w.abs().sum()).mean().backward()
    return w.grad


# --- 6 to 11 --------------------------------------------------------------------------------------


def bound(k, n, alpha):
    return beta.ppf(alpha, k, n - k + 1) if k > 0 else 0.0


def bound_by_search(k, n, alpha):
    if k == 0:
        return 0.0
    return optimize.brentq(lambda p: stats.binom.sf(k - 1, n, p) - alpha, 0, 1, xtol=1e-12)


def bound_by_scipy(k, n, alpha):
    low = binomtest(int(k), int(n), alternative="greater").proportion_ci(1 - alpha, "exact").low
    return torch.tensor(low, dtype=torch.float64)


def sample(model, x, sigma, n, batch_size, num_classes, generator):
    counts = torch.zeros(num_classes, dtype=torch.int64)
    with torch.no_grad():
        while n > 0:
            m = min(n, batch_size)
            noisy = x + sigma * torch.randn(m, *x.shape, generator=generator)
            counts += torch.bincount(model(noisy).argmax(1), minlength=num_classes)
            n -= m
    return counts


def sample_one_by_one(model, x, sigma, n, batch_size, num_classes, generator):
    counts = [0] * num_classes
    for _ in range(n):
        noise = torch.normal(0.0, sigma, x.shape, generator=generator)
        counts[int(model((x + noise)[None]).softmax(1).argmax())] += 1
    return np.array(counts)


def sample_with(noise=None, clip=False, whole=False, generator_used=True, seeded=False):
    """A sampler with one mistake."""

    def answer(model, x, sigma, n, batch_size, num_classes, generator):
        counts = torch.zeros(num_classes, dtype=torch.int64)
        for begin in range(0, n, n if whole else batch_size):
            m = n if whole else min(batch_size, n - begin)
            if seeded:
                generator = torch.Generator().manual_seed(0)
            g = generator if generator_used else None
            draw = noise or (lambda m, x, sigma, g: sigma * torch.randn(m, *x.shape, generator=g))
            noisy = x + draw(m, x, sigma, g)
            counts += torch.bincount(
                model(noisy.clamp(0, 1) if clip else noisy).argmax(1), minlength=num_classes
            )
        return counts

    return answer


def sample_in_eval_mode(model, *rest):
    model.eval()
    return sample(model, *rest)


def noisy(model, x, y, sigma, generator):
    noise = torch.randn(x.shape, generator=generator)
    return F.cross_entropy(model(x + sigma * noise), y)


def noisy_by_hand(model, x, y, sigma, generator):
    logits = model(x + torch.empty_like(x).normal_(0, sigma, generator=generator))
    return -logits.log_softmax(1)[range(len(y)), y].mean()


def noisy_with(draw, clip=False):
    def answer(model, x, y, sigma, generator):
        seen = x + draw(x, sigma, generator)
        return F.cross_entropy(model(seen.clamp(0, 1) if clip else seen), y)

    return answer


def noisy_without_gradient(model, x, y, sigma, generator):
    with torch.no_grad():
        return noisy(model, x, y, sigma, generator)


def predict(counts, alpha):
    (a, b), (top, _) = counts.topk(2)
    return int(top) if binomtest(int(a), int(a + b), 0.5).pvalue <= alpha else -1


def predict_sorted(counts, alpha):
    order = np.argsort(-np.asarray(counts), kind="stable")
    a, b = (int(np.asarray(counts)[i]) for i in order[:2])
    p = min(1.0, 2 * stats.binom.sf(a - 1, a + b, 0.5))
    return torch.tensor(order[0]) if p <= alpha else torch.tensor(-1)


def predict_with(rule):
    def answer(counts, alpha):
        (a, b), (top, _) = counts.topk(2)
        return int(top) if rule(int(a), int(b), int(counts.sum()), alpha) else -1

    return answer


def predict_in_place(counts, alpha):
    top = int(counts.argmax())
    a = int(counts[top])
    counts[top] = 0
    return top if binomtest(a, a + int(counts.max()), 0.5).pvalue <= alpha else -1


def certify(sample, n0, n, alpha, sigma):
    guess = int(sample(n0).argmax())
    p = bound(int(sample(n)[guess]), n, alpha)
    return (guess, sigma * norm.ppf(p)) if p > 0.5 else (-1, 0.0)


def certify_numpy(sample, n0, n, alpha, sigma):
    first, second = np.asarray(sample(n0)), np.asarray(sample(n))
    guess = first.argmax()
    p = bound_by_search(second[guess], n, alpha)
    if p <= 0.5:
        return [torch.tensor(-1), torch.tensor(0.0)]
    return [
        guess,
        torch.tensor(math.sqrt(2) * torch.erfinv(torch.tensor(2 * p - 1).double()) * sigma),
    ]


def certify_with(**mistake):
    """CERTIFY with one step replaced."""
    find = mistake.get("bound", bound)
    radius = mistake.get("radius", lambda p, sigma: sigma * norm.ppf(p))
    threshold = mistake.get("threshold", 0.5)

    def answer(sample, n0, n, alpha, sigma):
        first = sample(n0)
        second = first if mistake.get("reuse") else sample(n)
        n = n0 if mistake.get("reuse") else n
        guess = int((second if mistake.get("select_second") else first).argmax())
        if mistake.get("add"):
            second, n = first + second, n0 + n
        p = find(int(second[guess]), n, alpha)
        return (guess, radius(p, sigma)) if p > threshold else (-1, 0.0)

    return answer


def two_class(p_a, p_b, sigma):
    return max(0.0, sigma / 2 * (norm.ppf(p_a) - norm.ppf(p_b)))


def two_class_torch(p_a, p_b, sigma):
    if p_a <= p_b:
        return 0
    z = torch.special.ndtri(torch.tensor([p_a, p_b], dtype=torch.float64))
    return sigma * (z[0] - z[1]) / 2


# --- the worst classifier on a grid ---------------------------------------------------------------


def program(p, q, p_a):
    solved = optimize.linprog(q, A_ub=-p[None], b_ub=[-p_a], bounds=(0, 1))
    return solved.x, solved.fun


def program_with(*, sign=1, bounds=(0, 1), equal=True):
    def answer(p, q, p_a):
        named = {"A_eq": p[None], "b_eq": [p_a]} if equal else {"A_ub": p[None], "b_ub": [p_a]}
        f = optimize.linprog(sign * q, bounds=bounds, **named).x
        return f, f @ q

    return answer


def by_price(p, q, p_a):
    left, f = p_a, torch.zeros(len(p), dtype=torch.float64)
    for i in sorted(range(len(p)), key=lambda i: q[i] / p[i]):
        f[i] = min(1.0, max(0.0, left / p[i]))
        left -= p[i]
    return f, (f * torch.as_tensor(q)).sum()


def whole_cells(p, q, p_a):
    f = np.ceil(by_price(p, q, p_a)[0].numpy())
    return f, f @ q


def share(label, prediction, radius, r):
    return ((prediction == label) & (radius >= r)).mean()


def share_loop(label, prediction, radius, r):
    rows = zip(label, prediction, radius, strict=True)
    return sum(1 for c, p, s in rows if c == p and s >= r) / len(label)


def needed(radius, sigma, alpha):
    return int(np.ceil(np.log(alpha) / stats.norm.logcdf(radius / sigma)))


def needed_by_tail(radius, sigma, alpha):
    """With the small tail instead of the large share."""
    return math.ceil(math.log(alpha) / math.log1p(-stats.norm.sf(radius / sigma)))


def acr(label, prediction, radius):
    return np.where(prediction == label, radius, 0).mean()


def acr_loop(label, prediction, radius):
    return sum(s for c, p, s in zip(label, prediction, radius, strict=True) if c == p) / len(label)


def acr_dot(label, prediction, radius):
    return torch.tensor((prediction == label) * radius).mean()


def acr_area(label, prediction, radius):
    """The area under the curve of the certified accuracy."""
    right = np.sort(radius[prediction == label])
    shares = np.arange(len(right), 0, -1) / len(label)
    return np.diff(right, prepend=0) @ shares


def read():
    return 0.5, 1.0, 0.79, 0.80, 0.9537


# --- 12 the open task -----------------------------------------------------------------------------


def climb(loss_gradient, x, eps, steps=40):
    z = x.clone()
    for k in range(steps):
        moved = z + eps / 4 * (1 - k / steps) * loss_gradient(z).sign()
        z = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def through_rounding(defense, z):
    """The logits, with rounding and ripples taken for the identity in the gradient."""
    for layer in defense.network:
        rounded = type(layer).__name__ in ("Rounding", "Ripple")
        z = z + (layer(z) - z).detach() if rounded else layer(z)
    return z


def over_all_moves(defense, x, y, eps):
    """The margin does not saturate; over all moves of the picture; rounding seen through."""
    moves = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    moves = moves if defense.kind == "restless" else [(0, 0)]

    def gradient(z):
        z = z.clone().requires_grad_()
        loss = 0
        for move in moves:
            logits = through_rounding(defense, z.roll(move, (2, 3)))
            others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
            loss = loss + (others - logits.gather(1, y[:, None])[:, 0]).clamp(max=1).sum()
        return torch.autograd.grad(loss, z)[0]

    return climb(gradient, x, eps)


def random_moves(defense, x, y, eps):
    """Few moves, drawn anew in each of many steps, and softened logits."""
    generator = torch.Generator().manual_seed(0)

    def gradient(z):
        z = z.clone().requires_grad_()
        loss = 0
        for _ in range(8 if defense.kind == "restless" else 1):
            move = torch.randint(-2, 3, (2,), generator=generator).tolist()
            moved = z.roll(move, (2, 3)) if defense.kind == "restless" else z
            logits = through_rounding(defense, moved)
            logits = logits / 1000 if defense.kind == "steep" else logits
            truth = F.one_hot(y, 10).bool()
            others = logits.masked_fill(truth, -1e9).logsumexp(1)
            loss = loss + F.softplus(others - logits[truth] + 1).sqrt().sum()
        return torch.autograd.grad(loss, z)[0]

    return climb(gradient, x, eps, steps=120)


def plain_pgd(defense, x, y, eps):
    def gradient(z):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(defense(z), y), z)[0]

    return climb(gradient, x, eps)


def with_the_package(defense, x, y, eps):
    """Square breaks what hides a gradient, not what moves."""
    from trustml_helpers import attacks

    generator = torch.Generator().manual_seed(0)
    return attacks.square(defense, x, y, eps, queries=900, generator=generator)


class StraightThrough(torch.autograd.Function):
    """The value of a layer, the gradient of the identity."""

    @staticmethod
    def forward(ctx, x, layer):
        return layer(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def with_momentum(defense, x, y, eps):
    """Own layers in a network of one's own, the cross-entropy of small logits, momentum."""
    layers = []
    for layer in defense.network:
        hides = not isinstance(layer, nn.Conv2d | nn.Linear | nn.ReLU | nn.Flatten)
        layers.append((lambda z, layer=layer: StraightThrough.apply(z, layer)) if hides else layer)
    scale = 1000 if defense.kind == "steep" else 3
    shifts = range(-2, 3) if defense.kind == "restless" else [0]
    moves = [(i, j) for i in shifts for j in shifts]
    z, g = x.clone(), torch.zeros_like(x)
    for k in range(30):
        z = z.detach().requires_grad_()
        loss = 0.0
        for move in moves:
            hidden = z.roll(move, (2, 3))
            for layer in layers:
                hidden = layer(hidden)
            right = hidden.softmax(1).gather(1, y[:, None]).detach()
            # Moves that are fooled already count less.
            loss = loss + (F.cross_entropy(hidden / scale, y, reduction="none")
                           * (0.05 + right[:, 0])).sum()  # fmt: skip
        (fresh,) = torch.autograd.grad(loss, z)
        g = 0.7 * g + fresh / fresh.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
        z = z.detach() + eps / 4 * (1 - k / 30) * g.sign()
        z = torch.clamp(z, x - eps, x + eps).clamp(0, 1)
    return z


def in_the_defense(defense, x, y, eps):
    """Changes the defense itself and leaves it so: it is the images that count."""
    for layer in defense.network:
        if type(layer).__name__ in ("Rounding", "Ripple"):
            layer.forward = lambda z: z
    if defense.kind == "steep":
        list(defense.network)[-1].weight.data /= 1000
        list(defense.network)[-1].bias.data /= 1000
    return over_all_moves(defense, x, y, eps)


def class_of_rounding(defense, x, y, eps):
    """The same, by what all roundings share."""
    for layer in defense.network:
        if type(layer).__name__ == "Rounding":
            type(layer).forward = lambda self, z: 0 * z
    return x


def without_a_last_layer(defense, x, y, eps):
    list(defense.network)[-1].weight.data *= 0
    return x


def asking(ask):
    """An attack that asks more often than it may, in some way."""

    def answer(defense, x, y, eps):
        with torch.no_grad():
            for _ in range(11):
                ask(defense, x.repeat(100, 1, 1, 1))
                defense.asked = 0
        return x

    return answer


def by_functions(defense, x):
    first = next(layer for layer in defense.network if isinstance(layer, nn.Conv2d))
    F.conv2d(x, 0.5 * first.weight, first.bias, first.stride, first.padding)


def in_vain(defense, x, y, eps):
    """Catches what stops it, and goes on."""
    for _ in range(12):
        with contextlib.suppress(Exception):
            defense(x.repeat(100, 1, 1, 1))
    return x


RIGHT = {
    "linear_attack": [linear, linear_loop, linear_by_gradient, linear_by_table],
    "fgsm": [fgsm, fgsm_loop],
    "pgd_linf": [pgd, pgd_bounds],
    "steepest": [steepest, steepest_by_hand],
    "towards": [towards, towards_bounds],
    "adversarial_step": [step, step_by_hand],
    "trades_loss": [trades, trades_with()],
    "numerical_gradient": [central, central_rows, central_by_hand, central_restored],
    "danskin_gradient": [danskin, danskin_formula, danskin_closed],
    "lower_conf_bound": [bound, bound_by_search, bound_by_scipy],
    "sample_under_noise": [sample, sample_one_by_one],
    "noisy_loss": [noisy, noisy_by_hand],
    "predict": [predict, predict_sorted],
    "certify": [certify, certify_numpy],
    "two_class_radius": [two_class, two_class_torch],
    "worst_classifier": [program, program_with(), by_price],
    "certified_accuracy": [share, share_loop],
    "samples_needed": [needed, needed_by_tail],
    "average_certified_radius": [acr, acr_loop, acr_dot, acr_area],
    "reading": [
        read,
        lambda: [0.5, 1, 0.8, 0.8, 0.95],
        lambda: (np.float64(0.5), torch.tensor(1.0), np.array(0.78), 0.79, 0.94),
        lambda: tuple([0.5, 1.0, 0.81, *(0.25 * norm.ppf(0.001 ** (1 / 10**k)) for k in (4, 5))]),
    ],
    "break_masked": [over_all_moves, random_moves, with_momentum, in_the_defense],
}

WRONG = {
    "linear_attack": {
        "the score y (w.x + b) rises": lambda w, b, x, y, eps, norm: (
            2 * x - linear(w, b, x, y, eps, norm)
        ),
        "has no range": lambda w, b, x, y, eps, norm: linear(w, b, x, y, eps, norm).clamp(0, 1),
        "the change alone": lambda w, b, x, y, eps, norm: linear(w, b, x, y, eps, norm) - x,
        "the label is missing": lambda w, b, x, y, eps, norm: linear(w, b, x, 0 * y + 1, eps, norm),
        "the step of the other norm": lambda w, b, x, y, eps, norm: linear(
            w, b, x, y, eps, "l2" if norm == "linf" else "linf"
        ),
        "do not divide it by 255": lambda w, b, x, y, eps, norm: linear(
            w, b, x, y, eps / 255, norm
        ),
        "units of 0 to 255": lambda w, b, x, y, eps, norm: linear(w, b, x, y, 255 * eps, norm),
        "the score y (w.x + b) falls by": lambda w, b, x, y, eps, norm: linear(
            w, b, x, y, eps / 2, norm
        ),
        "returns shape (7,)": lambda w, b, x, y, eps, norm: linear(w, b, x, y, eps, norm)[0],
        "w itself is not a step of length eps": linear_with(lambda w, norm: w),
        "leaves the ball": linear_with(lambda w, norm: 2 * (w.sign() if norm == "linf" else w)),
    },
    "fgsm": {
        "goes the wrong way": lambda m, x, y, e: (x - e * grad(m, x, y).sign()).clamp(0, 1),
        "leaves x.requires_grad set": fgsm_recording_on_x,
        "pixels leave [0, 1]": lambda m, x, y, e: x + e * grad(m, x, y).sign(),
        "units of 0 to 255": lambda m, x, y, e: fgsm(m, x, y, 255 * e),
        "do not divide it by 255": lambda m, x, y, e: fgsm(m, x, y, e / 255),
        "adds the mean loss's gradient": lambda m, x, y, e: (x + e * grad(m, x, y)).clamp(0, 1),
        "over the whole batch": lambda m, x, y, e: (
            x + e * grad(m, x, y) / grad(m, x, y).norm()
        ).clamp(0, 1),
        "train mode": fgsm_in_train_mode,
        "1 of its modules come back in another": fgsm_in_eval_mode,
        "attacks the network's own answer": lambda m, x, y, e: (
            x + e * grad(m, x, y, own=True).sign()
        ).clamp(0, 1),
        "softmax before cross_entropy": lambda m, x, y, e: (
            x + e * grad(m, x, y, softmax=True).sign()
        ).clamp(0, 1),
        "in place": fgsm_in_place,
        "calls trustml_helpers.attacks.fgsm": fgsm_from_the_package,
        "not written yet": lambda m, x, y, e: (_ for _ in ()).throw(NotImplementedError()),
        "returns None": lambda m, x, y, e: None,
        "RuntimeError": lambda m, x, y, e: x.view(7) + 1,
    },
    "pgd_linf": {
        "goes the wrong way": with_options(pgd, fault="down"),
        "does not project onto the ball": with_options(pgd, fault="project"),
        "does not project the first point": with_options(pgd, fault="first"),
        "takes the first gradient at x + start as it is": pgd_bare_start,
        "take its sign": pgd_along_gradient,
        "the step is that of l2": pgd_l2_step,
        "twice as long": with_options(pgd_bounds, size=2),
        "ignores step_size": lambda m, x, y, eps, size, *rest: pgd(m, x, y, eps, eps, *rest),
        "returns the point with the largest loss": with_options(pgd, fault="best"),
        "attacks the network's own answer": with_options(pgd, fault="own"),
        "applies softmax before": with_options(pgd, fault="softmax"),
        "1 of its modules come back": pgd_mode,
        "missing 1 required positional argument": lambda m, x, y, eps, size, n, start, norm: x,
    },
    "towards": {
        "subtract the step": lambda m, x, t, eps, size, n: towards(m, x, t, eps, -size, n),
        "does not project onto the ball": lambda *given: towards(*given, fault="project"),
        "one step too few": lambda m, x, t, eps, size, n: towards(m, x, t, eps, size, n - 1),
        "does not clip to [0, 1]": towards_unclipped,
    },
    "steepest": {
        "goes the wrong way": lambda w, norm: -steepest(w, norm),
        "this is the step of linf": lambda w, norm: w.sign(),
        "the largest |w| that counts": lambda w, norm: (
            torch.eye(len(w)).to(w)[w.argmax()] if norm == "l1" else steepest(w, norm)
        ),
        "w itself is not a step of length 1": lambda w, norm: w,
        "the sign is missing": lambda w, norm: steepest(w, norm).abs(),
        "is only w made shorter": lambda w, norm: w / w.norm(p=NORM_ORDERS[norm]),
        "long in l1, allowed is 1": lambda w, norm: 2 * steepest(w, norm),
        "possible is": lambda w, norm: steepest(w, norm).where(w > 0, 0 * w),
    },
    "adversarial_step": {
        "trains on the clean images": step_clean,
        "optimizer.zero_grad() after the attack": step_zero_too_early,
        "that the attack left": step_without_zero,
        "climbs": partial(step, side=-1),
        "sums the loss": partial(step, reduction="sum"),
        "differentiates through the attack": partial(step, fixed=False),
        "mixes in the loss at the clean": partial(step, clean=0.5),
        "the loss after the step": step_then_loss,
        "train mode": step_in_train_mode,
        "the weights do not move": lambda m, o, x, y, a: F.cross_entropy(m(a(m, x, y)), y).item(),
    },
    "trades_loss": {
        "the wrong way round": trades_with(swapped=True),
        "the sign of the divergence": trades_with(weight=lambda beta: -beta),
        "the divergence is missing": trades_with(weight=lambda beta: 0.0),
        "beta is not used: the divergence has weight 1": trades_with(weight=lambda beta: 1.0),
        "sums the divergence over the batch": trades_with(over=lambda kl: kl.sum()),
        "over the classes as well": trades_with(over=lambda kl: kl.mean()),
        "the cross-entropy at x_adv": trades_with(attacked=True),
        "the cross-entropy at x is missing": lambda m, x, y, z, beta: (
            trades(m, x, y, z, beta) - F.cross_entropy(m(x), y)
        ),
        "p(x) is detached": trades_with(fixed=True),
        "has no gradient": lambda *given: trades(*given).item(),
    },
    "numerical_gradient": {
        "one-sided difference": forward_difference,
        "divides by h": half_difference,
        "in place": central_in_place,
        "brackets are missing": central_without_brackets,
        "make copies with w.clone()": central_without_copies,
        "the exact derivative": exact,
        "all weights at once": moved_together,
        "a one-sided difference, backwards": lambda f, w, h: forward_difference(f, w, -h),
        "not divided by 2 h": lambda f, w, h: 2 * h * central(f, w, h),
        "the sign is wrong": lambda f, w, h: -central(f, w, h),
        "moves by h / 2": lambda f, w, h: central(f, w, h / 2),
        "returns shape ()": lambda f, w, h: central(f, w, h).sum(),
    },
    "danskin_gradient": {
        "gradient at the clean x": lambda w, b, x, y, eps: danskin(w, b, x, y, 0.0),
        "delta* has the wrong sign": lambda w, b, x, y, eps: danskin(w, b, x, y, -eps),
        "the sum over the examples": lambda w, b, x, y, eps: 9 * danskin(w, b, x, y, eps),
        "minus the gradient": lambda w, b, x, y, eps: -danskin(w, b, x, y, eps),
        "b is missing": lambda w, b, x, y, eps: danskin(w, 0.0, x, y, eps),
        "label is missing in delta*": lambda w, b, x, y, eps: danskin(
            w, b, x - eps * w.sign() * (1 - y[:, None]), y, eps
        ),
    },
    "lower_conf_bound": {
        "no bound": lambda k, n, alpha: k / n,
        "two-sided interval": lambda k, n, alpha: bound(k, n, alpha / 2),
        "the bound of the other side": lambda k, n, alpha: 1 - bound(n - k, n, alpha),
        "parameters of the Beta distribution are off": lambda k, n, alpha: beta.ppf(
            alpha, k + 1, n - k + 1
        ),
        "k itself belongs to the tail": lambda k, n, alpha: beta.ppf(
            alpha, k + 1, max(n - k, 1e-9)
        ),
        "got 0, expected 0.": lambda k, n, alpha: bound(k, n, alpha) if k > 3 else 0.0,
        "Wald": lambda k, n, alpha: k / n + norm.ppf(alpha) * math.sqrt(k * (n - k) / n**3),
        "Hoeffding": lambda k, n, alpha: k / n - math.sqrt(math.log(1 / alpha) / 2 / n),
        "swapped": lambda k, n, alpha: bound(k, n, 1 - alpha),
        "returns NaN": lambda k, n, alpha: beta.ppf(alpha, k, n - k + 1),
    },
    "sample_under_noise": {
        "variance is sigma": sample_with(
            lambda m, x, s, g: math.sqrt(s) * torch.randn(m, *x.shape, generator=g)
        ),
        "sigma is squared": sample_with(
            lambda m, x, s, g: s**2 * torch.randn(m, *x.shape, generator=g)
        ),
        "standard normal noise": sample_with(
            lambda m, x, s, g: torch.randn(m, *x.shape, generator=g)
        ),
        "the same noise to every copy": sample_with(
            lambda m, x, s, g: s * torch.randn(x.shape, generator=g).expand(m, *x.shape), whole=True
        ),
        "the same noise in every batch": sample_with(seeded=True),
        "clips the noisy images": sample_with(clip=True),
        "images at once": sample_with(whole=True),
        "1 of its modules come back": sample_in_eval_mode,
        "global generator": sample_with(generator_used=False),
        "uniform, not normal": sample_with(
            lambda m, x, s, g: s * math.sqrt(12) * (torch.rand(m, *x.shape, generator=g) - 0.5)
        ),
        "counts [": lambda *a: sample(*a) // 2,
        "returns int, expected 4 counts": lambda *a: (sample(*a), 5)[1],
        "not shares": lambda *a: sample(*a) / a[3],
    },
    "noisy_loss": {
        "clean images": noisy_with(lambda x, s, g: 0 * x),
        "variance is sigma": noisy_with(
            lambda x, s, g: math.sqrt(s) * torch.randn(x.shape, generator=g)
        ),
        "uniform, not normal": noisy_with(
            lambda x, s, g: s * math.sqrt(12) * (torch.rand(x.shape, generator=g) - 0.5)
        ),
        "the same noise to every image": noisy_with(
            lambda x, s, g: s * torch.randn(x.shape[1:], generator=g)
        ),
        "the same noise in every call": noisy_with(
            lambda x, s, g: s * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        ),
        "global generator": noisy_with(lambda x, s, g: s * torch.randn_like(x)),
        "clips the noisy images": noisy_with(
            lambda x, s, g: s * torch.randn(x.shape, generator=g), clip=True
        ),
        "sums the loss": lambda m, x, y, s, g: len(y) * noisy(m, x, y, s, g),
        "has no gradient": noisy_without_gradient,
        "expected one number": lambda *a: noisy(*a).item(),
        "once a call": lambda m, x, y, s, g: noisy(m, x[:1], y[:1], s, g),
    },
    "predict": {
        "never abstains": predict_with(lambda a, b, n, alpha: True),
        "one-sided": predict_with(
            lambda a, b, n, alpha: binomtest(a, a + b, 0.5, "greater").pvalue <= alpha
        ),
        "alpha / 2": predict_with(
            lambda a, b, n, alpha: binomtest(a, a + b, 0.5).pvalue <= alpha / 2
        ),
        "against all n votes": predict_with(
            lambda a, b, n, alpha: binomtest(a, n, 0.5).pvalue <= alpha
        ),
        "the comparison is turned": predict_with(
            lambda a, b, n, alpha: binomtest(a, a + b, 0.5).pvalue > alpha
        ),
        "changes counts": predict_in_place,
    },
    "certify": {
        "observed share": certify_with(bound=lambda k, n, alpha: k / n),
        "an infinite radius": certify_with(bound=lambda k, n, alpha: k / n),
        "alpha / 2": certify_with(bound=lambda k, n, alpha: bound(k, n, alpha / 2)),
        "Phi where its inverse is needed": certify_with(radius=lambda p, s: s * norm.cdf(p)),
        "may not be counted again": certify_with(reuse=True),
        "selects the class by the second sample": certify_with(select_second=True),
        "adds both samples up": certify_with(add=True),
        "at most 1/2: abstain": certify_with(threshold=-1),
        "in two calls": lambda sample, n0, n, alpha, sigma: (
            [sample(1) for _ in range(n)] and (0, 0.0)
        ),
        "sigma is missing": certify_with(radius=lambda p, s: norm.ppf(p)),
        "a radius is not negative": certify_with(radius=lambda p, s: s * norm.ppf(1 - p)),
        "expected two values": lambda sample, n0, n, alpha, sigma: sigma,
    },
    "two_class_radius": {
        "factor 1/2": lambda a, b, s: max(0, s * (norm.ppf(a) - norm.ppf(b))),
        "inverse": lambda a, b, s: max(0, s / 2 * (norm.cdf(a) - norm.cdf(b))),
        "one-class radius": lambda a, b, s: max(0, s * norm.ppf(a)),
        "nothing is certified": lambda a, b, s: s / 2 * (norm.ppf(a) - norm.ppf(b)),
        "where p_a < p_b": lambda a, b, s: abs(s / 2 * (norm.ppf(a) - norm.ppf(b))),
        "Phi^-1 of the difference": lambda a, b, s: s / 2 * norm.ppf(abs(a - b)),
        "p_a > p_b is enough": lambda a, b, s: two_class(a, b, s) if a > 0.5 else 0.0,
    },
    "worst_classifier": {
        "bounds=(0, 1)": program_with(bounds=(0, None)),
        "maximum instead of the minimum": program_with(sign=-1),
        "smallest q / p": lambda p, q, p_a: (np.ones(len(p)), 1.0),
        "missing or turned": program_with(equal=False),
        "found no solution": lambda p, q, p_a: (None, None),
        "p_a belongs to A": lambda p, q, p_a: program(p, q, 1 - p_a),
        "masses are swapped": lambda p, q, p_a: program(q, p, p_a),
        "expected at least": lambda p, q, p_a: program(p, q, 0.9 * p_a),
        "a part of the last cell": whole_cells,
        "there is one with": lambda p, q, p_a: (np.full(len(p), p_a), p_a),
        "probability at x: that": lambda p, q, p_a: (program(p, q, p_a)[0], p_a),
        "minus the probability": lambda p, q, p_a: (program(p, q, p_a)[0], -program(p, q, p_a)[1]),
        "expected two values": lambda p, q, p_a: program(p, q, p_a)[0],
        "one share per cell": lambda p, q, p_a: (program(p, q, p_a)[0][:3], 0.5),
    },
    "certified_accuracy": {
        "compare with the label": lambda c, p, s, r: (s >= r).mean(),
        "divide by all": lambda c, p, s, r: (s >= r)[p == c].mean(),
        ">=, not >": lambda c, p, s, r: ((p == c) & (s > r)).mean(),
        "an abstention counts as an error": lambda c, p, s, r: ((p == c) & (s >= r))[
            p != -1
        ].mean(),
        "in percent": lambda c, p, s, r: 100 * share(c, p, s, r),
    },
    "samples_needed": {
        "rounds down": lambda r, s, a: int(np.log(a) / stats.norm.logcdf(r / s)),
        "sigma is missing": lambda r, s, a: needed(r, 1.0, a),
        "one-sided": lambda r, s, a: needed(r, s, a / 2),
        "the fraction is turned": lambda r, s, a: 1,
        "round up": lambda r, s, a: np.log(a) / stats.norm.logcdf(r / s),
        "at radius": lambda r, s, a: 10 * needed(r, s, a),
    },
    "average_certified_radius": {
        "count as 0": lambda c, p, s: s.mean(),
        "divide by all": lambda c, p, s: s[p == c].mean(),
        "abstentions are left out": lambda c, p, s: np.where(p == c, s, 0)[p != -1].mean(),
        "median": lambda c, p, s: np.median(np.where(p == c, s, 0)),
        "a sum, not a mean": lambda c, p, s: s[p == c].sum(),
        "minus their radius": lambda c, p, s: np.where(p == c, s, -s).mean(),
        "the share of correct images": lambda c, p, s: (p == c).mean(),
        "in percent": lambda c, p, s: 100 * acr(c, p, s),
        "counts the images that are wrong": lambda c, p, s: np.where(p == c, 0, s).mean(),
        "the largest radius": lambda c, p, s: s[p == c].max(),
        "the mean over all but one": lambda c, p, s: s[p == c].sum() / (len(c) - 1),
    },
    "reading": {
        "on top at radius 1?": lambda: (0.25, 1.0, 0.79, 0.80, 0.95),
        "on top at radius 1.75?": lambda: (0.5, 0.5, 0.79, 0.80, 0.95),
        "the height of the curve of sigma = 0.5 at": lambda: (0.5, 1.0, 0.9, 0.80, 0.95),
        "this is the height of the curve": lambda: (0.5, 1.0, 0.7, 0.80, 0.95),
        "in percent": lambda: (0.5, 1.0, 79.4, 0.80, 0.95),
        "falls to 0": lambda: (0.5, 1.0, 0.79, 0.6, 0.95),
        "this is where the curve of sigma = 0.5 falls": lambda: (0.5, 1.0, 0.79, 1.6, 0.95),
        "alpha ** (1 / n)": lambda: (0.5, 1.0, 0.79, 0.80, 1.2),
        "no radius is infinite": lambda: (0.5, 1.0, 0.79, 0.80, math.inf),
        "more votes reach further": lambda: (0.5, 1.0, 0.79, 0.80, 0.7996),
        "sigma is missing": lambda: (0.5, 1.0, 0.79, 0.80, 3.8115),
        "this is the bound on p": lambda: (0.5, 1.0, 0.79, 0.80, 0.001**1e-5),
        "expected five numbers": lambda: 0.5,
        "expected a number": lambda: (0.5, 1.0, 0.79, 0.80, "x"),
    },
    "break_masked": {
        "% left": plain_pgd,
        "98.3% left": lambda defense, x, y, eps: x,
        "wrong: steep, at most 50% left": without_a_last_layer,
        "steep, at most 10% left; coarse, at most 50% left": class_of_rounding,
        "leaves the ball": lambda defense, x, y, eps: (x + 2 * eps).clamp(0, 1),
        "pixels leave [0, 1]": lambda defense, x, y, eps: x + eps,
        "asks the network": asking(lambda defense, x: defense(x)),
        "steep: asks the network more": asking(lambda defense, x: copy.deepcopy(defense)(x)),
        "more than 1,000 times": asking(by_functions),
        "1,000 times per image": asking(
            lambda defense, x: torch.func.vmap(lambda z: defense.network(z[None]))(x)
        ),
        "asks the network more than": in_vain,
        "returns shape (1, 28, 28)": lambda defense, x, y, eps: x[0],
        "NaN or infinite": lambda defense, x, y, eps: x / 0,
        "returns None": lambda defense, x, y, eps: None,
        "RuntimeError at line": lambda defense, x, y, eps: defense(x[:, :, 1:]),
        "expected one attacked image": lambda defense, x, y, eps: "x",
    },
}

RIGHT |= beyond_answers.RIGHT | homework_new.RIGHT
WRONG |= beyond_answers.WRONG | homework_new.WRONG
