"""Answers to the homework's own tasks that students might give, right and wrong; see
``homework_answers``."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from beyond_answers import with_options
from scipy import optimize, stats
from scipy.stats import beta, binom, binomtest, norm


def rows(values):
    """One number per image, shaped to fit to images."""
    return values.view(-1, 1, 1, 1)


def slope(model, z, y, *, loss=F.cross_entropy, own=False, softmax=False):
    z = z.clone().requires_grad_()
    logits = model(z)
    y = logits.argmax(1) if own else y
    return torch.autograd.grad(loss(logits.softmax(1) if softmax else logits, y), z)[0]


# --- a step towards a target ----------------------------------------------------------------------


def margin(z, target, *, over="max", exclude=True, softmax=False):
    z = z.softmax(1) if softmax else z
    at = target[:, None]
    own = z.gather(1, at)[:, 0]
    filled = z.scatter(1, at, torch.inf if over == "min" else -torch.inf) if exclude else z
    others = {
        "max": filled.amax(1), "min": filled.amin(1), "sum": z.sum(1) - own,
        "mean": (z.sum(1) - own) / (z.shape[1] - 1), "none": 0 * own,
    }[over]  # fmt: skip
    return (others - own).sum()


def margin_slope(model, x, target, **options):
    return slope(model, x, target, loss=lambda z, t: margin(z, t, **options))


def step(model, x, target, eps, *, side=-1, **options):
    g = margin_slope(model, x, target, **options)
    return (x + side * eps * g.sign()).clamp(0, 1)


def step_loop(model, x, target, eps):
    """Image by image, the rival by a sort of the other classes."""
    moved = []
    for image, t in zip(x, target.tolist(), strict=True):
        z = image[None].clone().requires_grad_()
        logits = model(z)[0]
        rival = max((c for c in range(len(logits)) if c != t), key=lambda c: float(logits[c]))
        (g,) = torch.autograd.grad(logits[rival] - logits[t], z)
        moved.append((z.detach() - eps * torch.sign(g)).clip(0, 1)[0])
    return torch.stack(moved)


def step_top_two(model, x, target, eps):
    """By topk, and up the margin of the other sign."""
    delta = torch.zeros_like(x, requires_grad=True)
    logits = model(x + delta).log_softmax(1)  # differences are those of the logits
    (first, second), places = logits.topk(2, dim=1).values.T, logits.argmax(1)
    lead = logits[torch.arange(len(x)), target] - torch.where(places == target, second, first)
    (g,) = torch.autograd.grad(lead.mean(), delta)
    return torch.min(torch.max(x + eps * g.sign(), torch.zeros(())), torch.ones(()))


def step_functional(model, x, target, eps):
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def lead(image, t):
        logits = torch.func.functional_call(model, weights, (image[None],))[0]
        return logits[t] - (logits - 1e9 * F.one_hot(t, len(logits))).max()

    g = torch.stack([torch.func.grad(lead)(i, t) for i, t in zip(x, target, strict=True)])
    return torch.clamp(x + eps * g.sign(), min=0, max=1)


def step_on_a_copy(model, x, target, eps):
    """What happens to a copy happens to nobody."""
    model = copy.deepcopy(model).eval()
    z = x.clone().requires_grad_()
    margin(model(z), target).backward()
    return (x - eps * z.grad.sign()).clamp(0, 1)


def step_backward(model, x, target, eps):
    z = x.clone().requires_grad_()
    margin(model(z), target).backward()
    return (x - eps * z.grad.sign()).clamp(0, 1)


def step_zeroed(model, x, target, eps):
    found = step_backward(model, x, target, eps)
    model.zero_grad()
    return found


def step_in_mode(*calls):
    def answer(model, x, target, eps):
        for call in calls:
            getattr(model, call)()
        return step(model, x, target, eps)

    return answer


def step_frozen(model, x, target, eps):
    model.requires_grad_(False)
    return step(model, x, target, eps)


def step_in_place(model, x, target, eps):
    x -= eps * margin_slope(model, x, target).sign()
    return x.clamp_(0, 1)


def step_in_train_mode(model, x, target, eps):
    before = [module.training for module in model.modules()]
    model.train()
    found = step(model, x, target, eps)
    for module, flag in zip(model.modules(), before, strict=True):
        module.training = flag
    return found


# --- PGD that keeps the best ----------------------------------------------------------------------


def lengths(delta):
    return rows(delta.flatten(1).norm(dim=1).clamp(min=1e-12))


def into(x, z, eps, box=True):
    delta = z - x
    delta = delta * (eps / lengths(delta)).clamp(max=1)
    return (x + delta).clamp(0, 1) if box else x + delta


def each_loss(model, z, y):
    with torch.no_grad():
        return F.cross_entropy(model(z), y, reduction="none")


def walk(
    model, x, y, eps, size, steps, start, *, side=1, unit=lengths, project=into, first=into,
    loss=slope,
):  # fmt: skip
    """All points of PGD."""
    points = [first(x, x + start, eps)]
    for _ in range(steps):
        g = loss(model, points[-1], y)
        points.append(project(x, points[-1] + side * size * g / unit(g), eps))
    return points


def best(model, points, y):
    losses = torch.stack([each_loss(model, z, y) for z in points])
    return torch.stack(points)[losses.argmax(0), torch.arange(len(y))]


def kept(model, x, y, *rest, **options):
    return best(model, walk(model, x, y, *rest, **options), y)


def kept_running(model, x, y, eps, size, steps, start):
    """One pass: the loss comes with the gradient."""
    z = into(x, x + start, eps)
    top, found = torch.full((len(x),), -torch.inf), z.clone()
    for k in range(steps + 1):
        z = z.detach().requires_grad_()
        each = F.cross_entropy(model(z), y, reduction="none")
        (g,) = torch.autograd.grad(each.sum(), z)
        better = each.detach() > top
        top = torch.where(better, each.detach().to(top), top)
        found[better] = z.detach()[better]
        if k < steps:
            z = into(x, z.detach() + size * g / lengths(g), eps)
    return found


def kept_loop(model, x, y, eps, size, steps, start):
    """Image by image, with Python's max."""
    found = []
    for i in range(len(x)):
        at = slice(i, i + 1)
        points = walk(model, x[at], y[at], eps, size, steps, start[at])
        found.append(max(points, key=lambda z, at=at: float(each_loss(model, z, y[at]))))
    return torch.cat(found)


def kept_box_first(model, x, y, eps, size, steps, start):
    """Another valid order: the box first, then the ball, which keeps the point in the box."""

    def project(x, z, eps):
        return into(x, z.clamp(0, 1), eps, box=False).clamp(0, 1)

    return kept(model, x, y, eps, size, steps, start, project=project, first=project)


def kept_by_delta(model, x, y, eps, size, steps, start):
    delta = into(x, x + start, eps) - x
    best_delta, top = delta.clone(), each_loss(model, x + delta, y)
    for _ in range(steps):
        g = slope(model, x + delta, y, loss=lambda z, t: F.cross_entropy(z, t, reduction="sum"))
        delta = into(x, x + delta + size * F.normalize(g.flatten(1)).view_as(x), eps) - x
        now = each_loss(model, x + delta, y)
        best_delta = torch.where(rows(now > top), delta, best_delta)
        top = torch.maximum(top, now)
    return x + best_delta


def kept_of(points=lambda p: p, losses=lambda v: v, choose=None):
    """Points, or their losses, taken in another way."""

    def answer(model, x, y, *rest):
        path = walk(model, x, y, *rest)
        values = losses(torch.stack([each_loss(model, z, y) for z in path]))
        path = points(path)
        which = (choose or (lambda v: v.argmax(0)))(values)
        return torch.stack(path)[which, torch.arange(len(y))]

    return answer


def kept_raw(model, x, y, *rest):
    return kept(model, x, y, *rest, unit=lambda g: len(g) ** -1)


def kept_backward(model, x, y, eps, size, steps, start):
    found = kept(model, x, y, eps, size, steps, start)
    F.cross_entropy(model(x), y).backward()
    return found


def kept_ignoring(change):
    """Size, steps and start changed on the way."""
    return lambda model, x, y, eps, size, steps, start: kept(
        model, x, y, eps, *change(eps, size, steps, start)
    )


# --- MI-FGSM --------------------------------------------------------------------------------------


def l1(g):
    return rows(g.flatten(1).abs().sum(1))


def momentum(
    model, x, y, eps, size, steps, mu, *, unit=l1, new=1.0, last=None, side=1, clip=True,
    ball=True, more=0, loss=slope, at_x=False, by_sign=True, after=False,
):  # fmt: skip
    g, z = torch.zeros_like(x), x.clone()
    for _ in range(steps + more):
        fresh = loss(model, x if at_x else z, y)
        g = (mu if last is None else last) * g + (new(mu) if callable(new) else new) * fresh / (
            unit(fresh)
        )
        g = g / l1(g) if after else g
        z = z + side * size * (g.sign() if by_sign else g)
        z = x + (z - x).clamp(-eps, eps) if ball else z
        z = z.clamp(0, 1) if clip else z
    return z


def momentum_bounds(model, x, y, eps, size, steps, mu):
    """Ball and range as one interval; the mean of |g| is the l1 norm up to a factor."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    z, g = x.clone(), 0
    for _ in range(steps):
        fresh = slope(model, z, y)
        g = mu * g + fresh / fresh.abs().mean((1, 2, 3), keepdim=True)
        z = torch.clamp(z + size * torch.sign(g), low, high)
    return z


def momentum_loop(model, x, y, *rest):
    return torch.cat([momentum(model, x[i : i + 1], y[i : i + 1], *rest) for i in range(len(x))])


def momentum_history(model, x, y, eps, size, steps, mu):
    """The sum with its weights, from all gradients so far."""
    z, past = x, []
    for k in range(steps):
        g = slope(model, z, y, loss=lambda a, b: F.nll_loss(a.log_softmax(1), b, reduction="sum"))
        past.append(F.normalize(g.flatten(1), p=1).view_as(x))
        total = sum(mu ** (k - j) * each for j, each in enumerate(past))
        z = (x + (z + size * total.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def momentum_in_train_mode(model, *rest):
    model.train()
    return momentum(model, *rest)


# --- free adversarial training --------------------------------------------------------------------


def free(
    model, optimizer, x, y, delta, eps, replays, *, zero="each", reach=1.0, side=1, sign=True,
    clamp=True, begin=None, carry=True, late=False, steps=1, clip=True, reduction="mean", up=1,
):  # fmt: skip
    delta = given = delta.clone() if begin is None else begin(delta)
    before = delta
    for k in range(replays):
        before = delta
        d = (delta if carry else given).clone().requires_grad_()
        loss = F.cross_entropy(model((x + d).clamp(0, 1) if clip else x + d), y,
                               reduction=reduction)  # fmt: skip
        if zero == "each" or (zero == "once" and k == 0):
            optimizer.zero_grad()
        (up * loss).backward()
        for _ in range(steps if isinstance(steps, int) else steps(k, replays)):
            optimizer.step()
        size = reach(replays) if callable(reach) else reach
        delta = d.detach() + side * eps * size * (d.grad.sign() if sign else d.grad)
        delta = delta.clamp(-eps, eps) if clamp else delta
    return before if late else delta


def free_at_the_image(model, optimizer, x, y, delta, eps, replays):
    """The gradient at the clipped image, and autograd instead of backward."""
    weights = list(model.parameters())
    for _ in range(replays):
        image = torch.clamp(x + delta, 0, 1).requires_grad_()
        loss = F.cross_entropy(model(image), y)
        g, *rest = torch.autograd.grad(loss, [image, *weights])
        for weight, gradient in zip(weights, rest, strict=True):
            weight.grad = gradient
        delta = torch.clamp(delta + eps * g.sign(), min=-eps, max=eps)
        optimizer.step()
    return delta


def free_numpy(model, optimizer, x, y, delta, eps, replays):
    delta = delta.numpy().copy()
    for _ in range(replays):
        d = torch.from_numpy(delta).clone().requires_grad_()
        optimizer.zero_grad(set_to_none=False)
        torch.nn.CrossEntropyLoss()(model(torch.clip(x + d, 0, 1)), y).backward()
        optimizer.step()
        delta = np.clip(delta + eps * np.sign(d.grad.numpy()), -eps, eps)
    return delta


def free_leaf(model, optimizer, x, y, delta, eps, replays):
    """One leaf for all replays, changed where nobody records."""
    d = delta.clone().requires_grad_()
    for _ in range(replays):
        loss = -model((x + d).clamp(0, 1)).log_softmax(1)[torch.arange(len(y)), y].mean()
        optimizer.zero_grad()
        d.grad = None
        loss.backward()
        with torch.no_grad():
            d += eps * d.grad.sign()
            d.clamp_(-eps, eps)
        optimizer.step()
    return d


def free_two_passes(model, optimizer, x, y, delta, eps, replays):
    for _ in range(replays):
        g = slope(model, (x + delta).clamp(0, 1), y)
        optimizer.zero_grad()
        F.cross_entropy(model((x + delta).clamp(0, 1)), y).backward()
        optimizer.step()
        delta = (delta + eps * g.sign()).clamp(-eps, eps)
    return delta


def free_mixed(model, optimizer, x, y, delta, eps, replays):
    for _ in range(replays):
        d = delta.clone().requires_grad_()
        both = model(torch.cat([(x + d).clamp(0, 1), x]))
        optimizer.zero_grad()
        F.cross_entropy(both, torch.cat([y, y])).backward()
        optimizer.step()
        delta = (delta + eps * d.grad.sign()).clamp(-eps, eps)
    return delta


def free_in_place(model, optimizer, x, y, delta, eps, replays):
    delta.copy_(free(model, optimizer, x, y, delta, eps, replays))
    return delta


def free_in_mode(call):
    def answer(model, *rest):
        getattr(model, call)()
        return free(model, *rest)

    return answer


# --- Danskin in l2 --------------------------------------------------------------------------------


def danskin(w, b, x, y, eps, *, step=lambda w: w / w.norm(), label=True):
    z = x - eps * (y[:, None] if label else 1) * step(w)
    w = w.clone().requires_grad_()
    return torch.autograd.grad(F.softplus(-y * (z @ w + b)).mean(), w)[0]


def danskin_formula(w, b, x, y, eps):
    total = torch.zeros_like(w)
    for row, label in zip(x, y, strict=True):
        z = row - eps * label * w / torch.linalg.vector_norm(w)
        total -= label * torch.sigmoid(-label * (z @ w + b)) * z
    return total / len(x)


def danskin_closed(w, b, x, y, eps):
    """Not Danskin's way, but right: differentiate the closed form."""
    w = w.clone().requires_grad_()
    F.softplus(-y * (x @ w + b) + eps * w.norm()).mean().backward()
    return w.grad


def danskin_numpy(w, b, x, y, eps):
    w, x, y = (part.double().numpy() for part in (w, x, y))
    z = x - eps * np.outer(y, w / np.sqrt(w @ w))
    share = y / (1 + np.exp(y * (z @ w + b)))
    return -(share @ z) / len(x)


def danskin_at_clean(w, b, x, y, eps):
    z = x - eps * y[:, None] * w / w.norm()
    share = y * torch.sigmoid(-y * (z @ w + b))
    return -(share[:, None] * x).mean(0)


def danskin_sigmoid(w, b, x, y, eps):
    z = x - eps * y[:, None] * w / w.norm()
    return -((y * torch.sigmoid(y * (z @ w + b)))[:, None] * z).mean(0)


# --- shared bounds --------------------------------------------------------------------------------


def low(k, n, alpha):
    return float(beta.ppf(alpha, k, n - k + 1)) if k > 0 else 0.0


def high(k, n, alpha):
    return float(beta.ppf(1 - alpha, k + 1, n - k)) if k < n else 1.0


def shared(
    counts, top, alpha, *, part=lambda alpha, classes: alpha / 2, lower=low, upper=high,
    pick=max, among=False, cut=True, own=None,
):  # fmt: skip
    votes = counts.tolist()
    n, a = sum(votes), part(alpha, len(votes))
    rivals = [k for c, k in enumerate(votes) if c != top or among]
    p_a = lower(votes[top] if own is None else own(votes), n, a)
    p_b = upper(pick(rivals), n, a)
    return p_a, min(p_b, 1 - p_a) if cut else p_b


def shared_search(counts, top, alpha):
    """Both by solving for the tail."""
    n, k = int(counts.sum()), int(counts[top])
    rival = int(torch.cat([counts[:top], counts[top + 1 :]]).max())

    def solve(f):
        return optimize.brentq(f, 0, 1, xtol=1e-13)

    p_a = solve(lambda p: binom.sf(k - 1, n, p) - alpha / 2) if k else 0.0
    p_b = solve(lambda p: binom.cdf(rival, n, p) - alpha / 2) if rival < n else 1.0
    return [p_a, min(p_b, 1 - p_a)]


def shared_scipy(counts, top, alpha):
    """A two-sided interval at alpha has alpha / 2 on each side."""
    counts = counts.numpy()
    ends = [binomtest(int(k), int(counts.sum())).proportion_ci(1 - alpha) for k in counts]
    return ends[top].low, max(end.high for c, end in enumerate(ends) if c != top)


def shared_mirror(counts, top, alpha):
    """The upper bound of k is 1 minus the lower one of n - k; all in tensors."""
    k, n = counts.numpy(), int(counts.sum())
    bounds = torch.from_numpy(np.where(k < n, 1 - beta.ppf(alpha / 2, n - k, k + 1), 1.0))
    bounds[top] = -1
    p_a = torch.tensor(low(int(k[top]), n, alpha / 2), dtype=torch.float64)
    return torch.stack([p_a, torch.minimum(bounds.max(), 1 - p_a)])


def shared_in_place(counts, top, alpha):
    n, k = int(counts.sum()), int(counts[top])
    counts[top] = 0
    return low(k, n, alpha / 2), high(int(counts.max()), n, alpha / 2)


def wald(k, n, alpha):
    return k / n + norm.ppf(alpha) * math.sqrt(k * (n - k) / n**3)


def hoeffding(k, n, alpha):
    return max(0.0, k / n - math.sqrt(math.log(1 / alpha) / (2 * n)))


def mirrored(lower):
    return lambda k, n, alpha: 1 - lower(n - k, n, alpha)


# --- votes for a batch of images ------------------------------------------------------------------


def draw(x, m, sigma, generator):
    """m noisy copies of each image, one image after the other."""
    copies = x.repeat_interleave(m, 0)
    return copies + sigma * torch.randn(copies.shape, generator=generator)


def sample(
    model, x, sigma, n, batch_size, num_classes, generator, *, noise=None, clip=False,
    seed=None, whole=False,
):  # fmt: skip
    """Image by image."""
    counts = torch.zeros(len(x), num_classes, dtype=torch.int64)
    for i, image in enumerate(x):
        done = 0
        if seed == "image":
            generator = torch.Generator().manual_seed(0)
        while done < n:
            m = n if whole else min(batch_size, n - done)
            if seed == "batch":
                generator = torch.Generator().manual_seed(i)
            shape = (m, *image.shape)
            fresh = (
                noise(shape, sigma, generator)
                if noise
                else sigma * torch.randn(shape, generator=generator)
            )
            noisy = (image + fresh).clamp(0, 1) if clip else image + fresh
            with torch.no_grad():
                counts[i] += torch.bincount(model(noisy).argmax(1), minlength=num_classes)
            done += m
    return counts


def sample_together(model, x, sigma, n, batch_size, num_classes, generator):
    """All images share the batches; scatter counts them."""
    which = torch.arange(len(x)).repeat(n)
    counts = torch.zeros(len(x), num_classes, dtype=torch.int64)
    with torch.no_grad():
        for at in which.split(batch_size):
            noisy = x[at] + torch.empty(len(at), *x.shape[1:]).normal_(
                0, sigma, generator=generator
            )
            one = F.one_hot(model(noisy).argmax(1), num_classes)
            counts.index_add_(0, at, one)
    return counts


def sample_rounds(model, x, sigma, n, batch_size, num_classes, generator):
    """One copy of each image at a time, as far as they fit."""
    counts = np.zeros((len(x), num_classes), dtype=int)
    for _ in range(n):
        for part in torch.arange(len(x)).split(batch_size):
            noise = torch.randn(x[part].shape, generator=generator) * sigma
            for i, c in zip(part.tolist(), model(x[part] + noise).argmax(1).tolist(), strict=True):
                counts[i, c] += 1
    return counts


@torch.no_grad()
def sample_blocks(model, x, sigma, n, batch_size, num_classes, generator):
    """All copies lie in memory; the network sees parts."""
    noisy = draw(x, n, sigma, generator)
    labels = torch.cat([model(part).argmax(1) for part in noisy.split(batch_size)])
    return [torch.bincount(own, minlength=num_classes).tolist() for own in labels.view(len(x), n)]


def sample_broadcast(model, x, sigma, n, batch_size, num_classes, generator):
    """The noise lacks the dimension of the images."""
    counts = torch.zeros(len(x), num_classes, dtype=torch.int64)
    m = max(batch_size // len(x), 1)
    for begin in range(0, n, m):
        size = min(m, n - begin)
        noise = sigma * torch.randn(size, 1, *x.shape[1:], generator=generator)
        noisy = (x + noise).flatten(0, 1)
        labels = model(noisy).argmax(1).view(size, len(x))
        for i in range(len(x)):
            counts[i] += torch.bincount(labels[:, i], minlength=num_classes)
    return counts


def sample_mixed_up(model, x, sigma, n, batch_size, num_classes, generator):
    """Copies of the images take turns, the rows do not."""
    noisy = x.repeat(n, 1, 1, 1)
    noisy = noisy + sigma * torch.randn(noisy.shape, generator=generator)
    labels = torch.cat([model(part).argmax(1) for part in noisy.split(batch_size)])
    return torch.stack([
        torch.bincount(own, minlength=num_classes) for own in labels.view(len(x), n)
    ])  # fmt: skip


def sample_in_mode(call):
    def answer(model, *rest):
        getattr(model, call)()
        return sample(model, *rest)

    return answer


# --- CERTIFY with two classes ---------------------------------------------------------------------


def certify(
    sample, n0, n, alpha, sigma, *, bounds=shared, radius=None, holds=lambda a, b: a > b,
    reuse=False, second=False, first_rival=False, add=False, swap=False,
):  # fmt: skip
    first = sample(n0)
    votes = first if reuse else sample(n)
    top = int((votes if second else first).argmax())
    votes = first + votes if add else votes
    p_a, p_b = bounds(votes, top, alpha)
    if first_rival:
        order = first.argsort(descending=True)
        p_b = high(int(votes[order[1] if order[0] == top else order[0]]), n, alpha / 2)
    if not holds(p_a, p_b):
        return -1, 0.0
    size = (
        sigma / 2 * (norm.ppf(p_a) - norm.ppf(p_b)) if radius is None else radius(p_a, p_b, sigma)
    )
    return (size, top) if swap else (top, size)


def certify_numpy(sample, n0, n, alpha, sigma):
    guess = np.asarray(sample(n0)).argmax()
    votes = np.asarray(sample(n))
    p_a = low(votes[guess], n, alpha / 2)
    p_b = high(np.delete(votes, guess).max(), n, alpha / 2)
    z = torch.special.ndtri(torch.tensor([p_a, p_b], dtype=torch.float64))
    return [int(guess), sigma * (z[0] - z[1]) / 2] if p_a > p_b else [torch.tensor(-1), 0]


def certify_all(sample, n0, n, alpha, sigma):
    """A radius against each rival, the smallest of them."""
    top = int(sample(n0).topk(1).indices)
    votes = sample(n).tolist()
    p_a = low(votes[top], n, alpha / 2)
    radii = [sigma / 2 * (norm.isf(high(k, n, alpha / 2)) - norm.isf(p_a))
             for c, k in enumerate(votes) if c != top]  # fmt: skip
    return (top, min(radii)) if min(radii) > 0 else (-1, 0.0)


def certify_early(sample, n0, n, alpha, sigma):
    top = max(enumerate(sample(n0).tolist()), key=lambda pair: pair[1])[0]
    votes = sample(n)
    ends = [binomtest(int(k), n).proportion_ci(1 - alpha) for k in votes]
    p_b = max(end.high for c, end in enumerate(ends) if c != top)
    if ends[top].low <= p_b:
        return -1, 0
    return top, float(np.diff(norm.ppf([p_b, ends[top].low]))[0] * sigma / 2)


def certify_by(part):
    return with_options(certify, bounds=with_options(shared, part=part))


# --- the probability of abstaining ----------------------------------------------------------------


def abstains(k, n, alpha, side="two-sided"):
    return binomtest(max(k, n - k), n, 0.5, side).pvalue > alpha


def abstention(p, n, alpha, *, rule=abstains, weight=None):
    weight = weight or (lambda k: binom.pmf(k, n, p))
    return sum(weight(k) for k in range(n + 1) if rule(k, n, alpha))


def abstention_border(p, n, alpha):
    """The counts that abstain are neighbours: one difference of two tails."""
    k = n // 2
    while k < n and min(1.0, 2 * binom.sf(k, n, 0.5)) > alpha:
        k += 1
    if min(1.0, 2 * binom.sf(k - 1, n, 0.5)) <= alpha:
        return 0.0
    return binom.cdf(k, n, p) - binom.cdf(n - k - 1, n, p)


def abstention_vector(p, n, alpha):
    k = np.arange(n + 1)
    values = np.minimum(1.0, 2 * binom.sf(np.maximum(k, n - k) - 1, n, 0.5))
    return torch.tensor(binom.pmf(k, n, p) @ (values > alpha))


def abstention_comb(p, n, alpha):
    """In whole numbers and logarithms, no scipy."""
    total = 0.0
    for k in range(n + 1):
        tail = sum(math.comb(n, j) for j in range(max(k, n - k), n + 1))
        if min(2 * tail, 2**n) > alpha * 2**n:
            total += math.exp(math.log(math.comb(n, k)) + k * math.log(p)
                              + (n - k) * math.log1p(-p))  # fmt: skip
    return total


def abstention_complement(p, n, alpha):
    votes = stats.binom(n, p)
    return 1 - sum(votes.pmf(k) for k in range(n + 1) if not abstains(k, n, alpha))


def simulated(p, n, alpha, seed=0):
    draws = np.random.default_rng(seed).binomial(n, p, 4000)
    values = {k: abstains(int(k), n, alpha) for k in np.unique(draws)}
    return float(np.mean([values[k] for k in draws]))


def simulated_anew(p, n, alpha):
    draws = np.random.default_rng().binomial(n, p, 50)
    return float(np.mean([abstains(int(k), n, alpha) for k in draws]))


def abstention_bell(p, n, alpha):
    inside = [k for k in range(n + 1) if abstains(k, n, alpha)]
    bell = norm(n * p, math.sqrt(n * p * (1 - p)))
    return bell.cdf(inside[-1] + 0.5) - bell.cdf(inside[0] - 0.5)


# --- bands ----------------------------------------------------------------------------------------


def band(p, distance, sigma, *, shift=lambda d, s: d / s, centre=norm.ppf, out=norm.cdf):
    d = shift(distance, sigma)
    return out(centre(p) - d), out(centre(p) + d)


def band_torch(p, distance, sigma):
    z = torch.special.ndtri(torch.tensor(p, dtype=torch.float64))
    return torch.special.ndtr(z + torch.tensor([-1.0, 1.0]).double() * distance / sigma)


def band_mirror(p, distance, sigma):
    """The highest is 1 minus the lowest of the others."""
    lowest = float(norm.cdf(norm.ppf(p) - distance / sigma))
    return [lowest, 1 - norm.cdf(norm.ppf(1 - p) - distance / sigma)]


def band_shifted(p, distance, sigma):
    """By the mass of a half-space around another centre."""
    edge = norm.ppf(p, loc=0, scale=sigma)
    return norm.cdf(edge, distance, sigma), norm.cdf(edge, -distance, sigma)


def band_erf(p, distance, sigma):
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))
    return tuple((1 + math.erf((z + side * distance / sigma) / math.sqrt(2))) / 2
                 for side in (-1, 1))  # fmt: skip


# --- the radius at a share ------------------------------------------------------------------------


def highest(label, prediction, radius, share):
    right = np.sort(radius[prediction == label])[::-1]
    k = math.ceil(share * len(label))
    return float(right[k - 1]) if k <= len(right) else 0.0


def highest_search(label, prediction, radius, share):
    """Every radius of the log is tried."""
    best = 0.0
    for r in radius:
        if ((prediction == label) & (radius >= r)).mean() >= share:
            best = max(best, float(r))
    return best


def highest_cumulated(label, prediction, radius, share):
    order = np.argsort(-radius, kind="stable")
    curve = np.cumsum((prediction == label)[order]) / len(label)
    enough = curve >= share
    return radius[order][enough.argmax()] if enough.any() else 0


def highest_quantile(label, prediction, radius, share):
    """The right order statistic, by numpy's name for it."""
    counted = np.where(prediction == label, radius, -1.0)
    k = len(label) - math.ceil(share * len(label))
    return max(0.0, float(np.partition(counted, k)[k]))


def highest_torch(label, prediction, radius, share):
    counted = torch.where(torch.tensor(prediction == label), torch.tensor(radius), -1.0)
    return counted.topk(math.ceil(share * len(label))).values[-1].clamp(min=0)


def highest_with(*, values=None, images=None, more=0):
    """The order statistic of other radii, or of another number of images."""

    def answer(label, prediction, radius, share):
        right = prediction == label
        kept = np.sort(values(right, radius) if values else radius[right])[::-1]
        k = math.ceil(share * (images(right, prediction) if images else len(label))) + more
        return float(kept[max(k, 1) - 1]) if k <= len(kept) else 0.0

    return answer


def by_quantile(of=lambda right, radius: np.where(right, radius, 0.0), side=lambda s: 1 - s):
    return lambda label, prediction, radius, share: float(
        np.quantile(of(prediction == label, radius), side(share))
    )


def on_a_grid(label, prediction, radius, share):
    grid = np.arange(0, 2, 0.01)
    return max((r for r in grid if ((prediction == label) & (radius >= r)).mean() >= share),
               default=0.0)  # fmt: skip


# --- p-values of a radius -------------------------------------------------------------------------


def p_value(k, n, radius, sigma, *, of=lambda r, s: r / s, tail=None):
    p = norm.cdf(of(radius, sigma))
    return tail(k, n, p) if tail else binom.sf(k - 1, n, p)


def p_value_sum(k, n, radius, sigma):
    return binom.pmf(np.arange(k, n + 1), n, norm.cdf(radius / sigma)).sum()


def p_value_beta(k, n, radius, sigma):
    """The tail is a Beta distribution's."""
    return torch.tensor(beta.cdf(norm.cdf(radius, scale=sigma), k, n - k + 1))


def p_value_test(k, n, radius, sigma):
    return binomtest(k, n, norm.cdf(radius / sigma), alternative="greater").pvalue


def p_value_failures(k, n, radius, sigma):
    return binom.cdf(n - k, n, norm.sf(radius / sigma))


def bell(k, n, p, half=0.0):
    return norm.sf((k - half - n * p) / math.sqrt(n * p * (1 - p)))


RIGHT = {
    "step_towards": [step, step_loop, step_top_two, step_functional, step_on_a_copy],
    "pgd_best": [kept, kept_running, kept_loop, kept_box_first, kept_by_delta],
    "momentum_pgd": [momentum, momentum_bounds, momentum_loop, momentum_history],
    "free_step": [free, free_at_the_image, free_numpy, free_leaf],
    "danskin_gradient_l2": [danskin, danskin_formula, danskin_closed, danskin_numpy],
    "shared_bounds": [shared, shared_search, shared_scipy, shared_mirror],
    "sample_batch": [sample, sample_together, sample_rounds, sample_blocks],
    "certify_two_class": [certify, certify_numpy, certify_all, certify_early],
    "abstention": [
        abstention, abstention_border, abstention_vector, abstention_comb, abstention_complement,
    ],
    "probability_band": [band, band_torch, band_mirror, band_shifted, band_erf],
    "radius_at": [highest, highest_search, highest_cumulated, highest_quantile, highest_torch],
    "radius_p_value": [p_value, p_value_sum, p_value_beta, p_value_test, p_value_failures],
}  # fmt: skip
WRONG = {
    "step_towards": {
        "the margin rises": with_options(step, side=1),
        "the maximum runs over all classes": with_options(step, exclude=False),
        "raises the logit of the target alone": with_options(step, over="none"),
        "the mean of the other logits": with_options(step, over="mean"),
        "the smallest of the other logits": with_options(step, over="min"),
        "takes the margin of probabilities": with_options(step, softmax=True),
        "descends the cross-entropy of the target": lambda m, x, t, eps: (
            x - eps * slope(m, x, t).sign()).clamp(0, 1),
        "the network's own answer": lambda m, x, t, eps: (
            x - eps * slope(m, x, t, loss=margin, own=True).sign()).clamp(0, 1),
        "pixels leave [0, 1]": lambda m, x, t, eps: x - eps * margin_slope(m, x, t).sign(),
        "adds the gradient, not its sign": lambda m, x, t, eps: (
            x - eps * margin_slope(m, x, t)).clamp(0, 1),
        "do not divide it by 255": lambda m, x, t, eps: step(m, x, t, eps / 255),
        "in place": step_in_place,
        "train mode": step_in_train_mode,
        "1 of its modules come back": step_in_mode("eval"),
        "modules come back in another": step_in_mode("train", "eval"),
        "changes .grad of the parameters": step_backward,
        "and zero_grad() do": step_zeroed,
        "leaves requires_grad of the weights": step_frozen,
    },
    "pgd_best": {
        "returns the last point": lambda m, x, y, *rest: walk(m, x, y, *rest)[-1],
        "one point for the whole batch": kept_of(
            choose=lambda v: v.mean(1).argmax().repeat(v.shape[1])),
        "the start is not among": kept_of(lambda p: p[1:], lambda v: v[1:]),
        "the last point is not among": kept_of(lambda p: p[:-1], lambda v: v[:-1]),
        "the smallest loss": kept_of(choose=lambda v: v.argmin(0)),
        "the point after it": kept_of(lambda p: p[1:], lambda v: v[:-1]),
        "goes the wrong way": with_options(kept, side=-1),
        "the step is that of l-inf": with_options(kept, unit=torch.abs),
        "steps along the gradient itself": kept_raw,
        "each image has its own norm": with_options(kept, unit=lambda g: g.norm()),
        "does not project onto the ball": with_options(
            kept, project=lambda x, z, eps: z.clamp(0, 1)),
        "does not project the first point": with_options(
            kept, first=lambda x, z, eps: z.clamp(0, 1)),
        "to [0, 1]": with_options(kept, project=with_options(into, box=False)),
        "ignores start": kept_ignoring(lambda eps, size, steps, start: (size, steps, 0 * start)),
        "or a step is missing": kept_ignoring(
            lambda eps, size, steps, start: (size, steps - 1, start)),
        "one step too many": kept_ignoring(
            lambda eps, size, steps, start: (size, steps + 1, start)),
        "the steps are eps long": kept_ignoring(
            lambda eps, size, steps, start: (eps, steps, start)),
        "eps / steps long": kept_ignoring(
            lambda eps, size, steps, start: (eps / steps, steps, start)),
        "the network's own answer": with_options(kept, loss=with_options(slope, own=True)),
        "softmax before cross_entropy": with_options(kept, loss=with_options(slope, softmax=True)),
        "changes .grad": kept_backward,
    },
    "momentum_pgd": {
        "the momentum is missing": with_options(momentum, last=0.0),
        "divide it by its l1 norm first": with_options(momentum, unit=lambda g: 1.0),
        "it is the l1 norm": with_options(momentum, unit=lengths),
        "each image has its own": with_options(momentum, unit=lambda g: g.abs().sum()),
        "adds up signs": with_options(momentum, unit=lambda g: g.abs()),
        "it weighs the last g": with_options(momentum, last=1.0, new=lambda mu: mu),
        "mu is not used": with_options(momentum, last=1.0),
        "a moving average": with_options(momentum, new=lambda mu: 1 - mu),
        "divides the sum by its norm": with_options(momentum, unit=lambda g: 1.0, after=True),
        "goes the wrong way": with_options(momentum, side=-1),
        "does not project onto the ball": with_options(momentum, ball=False),
        "does not clip": with_options(momentum, clip=False),
        "one step too few": with_options(momentum, more=-1),
        "one step too many": with_options(momentum, more=1),
        "take its sign": with_options(momentum, by_sign=False),
        "at x in every step": with_options(momentum, at_x=True),
        "train mode": momentum_in_train_mode,
    },
    "free_step": {
        "before every backward": with_options(free, zero="never"),
        "in every replay": with_options(free, zero="once"),
        "delta goes the wrong way": with_options(free, side=-1),
        "delta moves along the gradient itself": with_options(free, sign=False),
        "delta leaves [-eps, eps]": with_options(free, clamp=False),
        "goes on from the last one": with_options(free, carry=False),
        "begins with delta = 0": with_options(free, begin=lambda delta: 0 * delta),
        "before the last replay": with_options(free, late=True),
        "the weights move only once": with_options(
            free, steps=lambda k, replays: int(k == replays - 1)),
        "eps / replays": with_options(free, reach=lambda replays: 1 / replays),
        "1.25 eps": with_options(free, reach=1.25),
        "pixels outside [0, 1]": with_options(free, clip=False),
        "sums the loss": with_options(free, reduction="sum"),
        "the weights do not move": with_options(free, steps=0),
        "two optimizer steps": with_options(free, steps=2),
        "climbs: the weights descend": with_options(free, up=-1),
        "asks the network 2 times in 1 replays": free_two_passes,
        "delta in place": free_in_place,
        "train mode": free_in_mode("train"),
        "changes the mode": free_in_mode("eval"),
        "delta does not move": with_options(free, reach=0.0),
        "mixes in the loss at the clean": free_mixed,
    },
    "danskin_gradient_l2": {
        "that of the other ball": with_options(danskin, step=torch.sign),
        "is eps y w, not eps long": with_options(danskin, step=lambda w: w),
        "the square of the norm": with_options(danskin, step=lambda w: w / (w @ w)),
        "gradient at the clean x": lambda w, b, x, y, eps: danskin(w, b, x, y, 0.0),
        "delta* has the wrong sign": lambda w, b, x, y, eps: danskin(w, b, x, y, -eps),
        "the sum over the examples": lambda w, b, x, y, eps: 9 * danskin(w, b, x, y, eps),
        "minus the gradient": lambda *given: -danskin(*given),
        "b is missing": lambda w, b, x, y, eps: danskin(w, 0.0, x, y, eps),
        "label is missing in delta*": with_options(danskin, label=False),
        "the last factor is the clean x": danskin_at_clean,
        "do not divide it by 255": lambda w, b, x, y, eps: danskin(w, b, x, y, eps / 255),
        "the sigmoid is of minus the score": danskin_sigmoid,
    },
    "shared_bounds": {
        "the whole alpha": with_options(shared, part=lambda a, classes: a),
        "alpha / K for each bound: valid": with_options(
            shared, part=lambda a, classes: a / classes),
        "alpha / (K - 1)": with_options(shared, part=lambda a, classes: a / (classes - 1)),
        "is not halved again": with_options(shared, part=lambda a, classes: a / 4),
        "the order is wrong": lambda *given: shared(*given)[::-1],
        "top itself is among": with_options(shared, among=True),
        "the weakest rival": with_options(shared, pick=min),
        "that is the one-class form": lambda *given: (shared(*given)[0], 1 - shared(*given)[0]),
        "adds the rivals' bounds up": with_options(
            lambda counts, top, alpha: (shared(counts, top, alpha)[0], min(1.0, sum(
                high(k, int(counts.sum()), alpha / 2)
                for c, k in enumerate(counts.tolist()) if c != top)))),
        "p_a: this is k / n": with_options(shared, lower=lambda k, n, a: k / n),
        "p_b: this is k / n": with_options(shared, upper=lambda k, n, a: k / n),
        "p_a: the normal approximation (Wald)": with_options(shared, lower=wald),
        "p_b: the normal approximation (Wald)": with_options(shared, upper=mirrored(wald)),
        "p_a: Hoeffding": with_options(shared, lower=hoeffding),
        "p_b: Hoeffding": with_options(shared, upper=mirrored(hoeffding)),
        "p_b: k itself belongs": with_options(
            shared, upper=lambda k, n, a: float(beta.ppf(1 - a, max(k, 1e-9), n - k + 1))),
        "p_b: the parameters of the Beta distribution are off": with_options(
            shared, upper=lambda k, n, a: float(beta.ppf(1 - a, k + 1, n - k + 1))),
        "p_a: the parameters of the Beta distribution are off": with_options(
            shared, lower=lambda k, n, a: float(beta.ppf(a, k + 1, n - k + 1))),
        "p_b: this is the bound of the other side": with_options(shared, upper=low),
        "p_a: alpha and 1 - alpha are swapped": with_options(
            shared, lower=lambda k, n, a: low(k, n, 1 - a)),
        "returns NaN, expected two probabilities": with_options(
            shared, lower=lambda k, n, a: beta.ppf(a, k, n - k + 1)),
        "the class with most votes": with_options(shared, own=max),
        "in place": shared_in_place,
        "expected two values": lambda *given: shared(*given)[0],
    },
    "sample_batch": {
        "the same noise to every image": sample_broadcast,
        "draw noise of its own for each": with_options(sample, seed="image"),
        "do not seed the generator again": with_options(sample, seed="batch"),
        "do not add them up": lambda *given: sample(*given).sum(0),
        "the counts of all": lambda *given: sample(*given).sum(0).expand(len(given[1]), -1),
        "never asks about image 1": lambda m, x, *rest: sample(m, x[:1], *rest),
        "images at once": with_options(sample, whole=True),
        "global generator": with_options(
            sample, noise=lambda shape, s, g: s * torch.randn(shape)),
        "variance is sigma": with_options(
            sample, noise=lambda shape, s, g: math.sqrt(s) * torch.randn(shape, generator=g)),
        "sigma is squared": with_options(
            sample, noise=lambda shape, s, g: s**2 * torch.randn(shape, generator=g)),
        "standard normal noise": with_options(
            sample, noise=lambda shape, s, g: torch.randn(shape, generator=g)),
        "uniform, not normal": with_options(
            sample,
            noise=lambda shape, s, g: s * math.sqrt(12) * (torch.rand(shape, generator=g) - 0.5)),
        "the same noise to every copy": with_options(
            sample,
            noise=lambda shape, s, g: s * torch.randn(shape[1:], generator=g).expand(shape)),
        "clips the noisy images": with_options(sample, clip=True),
        "rows of other images": sample_mixed_up,
        "1 of its modules": sample_in_mode("eval"),
        "train mode": sample_in_mode("train"),
        "not shares": lambda *given: sample(*given) / given[3],
        "n = ": lambda m, x, s, n, *rest: sample(m, x, s, n // 2, *rest),
        "a row for each image": lambda *given: sample(*given)[:, :2],
        "the network's answers were": lambda *given: sample(*given).roll(1, 1),  # from class 1 on
        "they add up to": lambda *given: sample(*given) + 1,  # counts that begin at 1
    },
    "certify_two_class": {
        "the one-class radius": with_options(certify, bounds=lambda votes, top, alpha: (
            shared(votes, top, alpha)[0], 1 - shared(votes, top, alpha)[0])),
        "each bound the whole alpha": certify_by(lambda a, classes: a),
        "alpha / K for each bound": certify_by(lambda a, classes: a / classes),
        "is not halved again": certify_by(lambda a, classes: a / 4),
        "the factor 1/2 is missing": with_options(
            certify, radius=lambda a, b, s: s * (norm.ppf(a) - norm.ppf(b))),
        "sigma is missing": with_options(
            certify, radius=lambda a, b, s: (norm.ppf(a) - norm.ppf(b)) / 2),
        "sigma squared": with_options(
            certify, radius=lambda a, b, s: s**2 / 2 * (norm.ppf(a) - norm.ppf(b))),
        "Phi where its inverse is needed": with_options(
            certify, radius=lambda a, b, s: s / 2 * (norm.cdf(a) - norm.cdf(b))),
        "adds the two quantiles": with_options(
            certify, radius=lambda a, b, s: s / 2 * (norm.ppf(a) + norm.ppf(b))),
        "Phi^-1 of the difference": with_options(
            certify, radius=lambda a, b, s: s / 2 * norm.ppf(a - b)),
        "an infinite radius": with_options(
            certify, bounds=with_options(shared, lower=lambda k, n, a: k / n,
                                         upper=lambda k, n, a: k / n)),
        "the observed shares": with_options(
            certify, bounds=with_options(shared, lower=lambda k, n, a: k / n,
                                         upper=lambda k, n, a: k / n)),
        "the observed share of the rival": with_options(
            certify, bounds=with_options(shared, upper=lambda k, n, a: k / n)),
        "the lower bound of the rival": with_options(
            certify, bounds=with_options(shared, upper=low)),
        "the weakest rival": with_options(certify, bounds=with_options(shared, pick=min)),
        "the runner-up of the first sample": with_options(certify, first_rival=True),
        "it need not be above 1/2": with_options(certify, holds=lambda a, b: a > max(b, 0.5)),
        "p_a is not above p_b": with_options(certify, holds=lambda a, b: True),
        "may not be counted again": with_options(certify, reuse=True),
        "selects the class by the second sample": with_options(certify, second=True),
        "adds both samples up": with_options(certify, add=True),
        "expected two values": lambda *given: certify(*given)[1],
        "a class or -1": with_options(certify, swap=True),
    },
    "abstention": {
        "the probability that it answers": lambda *given: 1 - abstention(*given),
        "one-sided test": with_options(
            abstention, rule=lambda k, n, a: abstains(k, n, a, "greater")),
        "alpha / 2": lambda p, n, alpha: abstention(p, n, alpha / 2),
        "the first class leads: it abstains, too": with_options(
            abstention, rule=lambda k, n, a: 2 * k >= n and abstains(k, n, a)),
        "the normal approximation of the test": with_options(
            abstention, rule=lambda k, n, a: 2 * norm.sf(abs(2 * k - n) / n**0.5) > a),
        "the normal approximation of the votes": abstention_bell,
        "abstains at a p-value of exactly alpha": with_options(
            abstention, rule=lambda k, n, a: binomtest(max(k, n - k), n).pvalue >= a),
        "as a simulation would": simulated,
        "sum exactly": simulated_anew,
        "sums under p = 1/2": lambda p, n, alpha: abstention(0.5, n, alpha),
        "tests against p": lambda p, n, alpha: abstention(
            p, n, alpha, rule=lambda k, n, a: binomtest(k, n, p).pvalue > a),
        "each k counts with its probability": lambda p, n, alpha: abstention(
            p, n, alpha, weight=lambda k: 1 / (n + 1)),
        "the first class is answered": with_options(
            abstention, rule=lambda k, n, a: 2 * k > n and not abstains(k, n, a)),
        "a tie alone": with_options(abstention, rule=lambda k, n, a: 2 * k == n),
    },
    "probability_band": {
        "the order is wrong": lambda *given: band(*given)[::-1],
        "sigma is missing": with_options(band, shift=lambda d, s: d),
        "sigma squared": with_options(band, shift=lambda d, s: d / s**2),
        "times sigma": with_options(band, shift=lambda d, s: d * s),
        "half of it": with_options(band, shift=lambda d, s: d / s / 2),
        "twice of it": with_options(band, shift=lambda d, s: 2 * d / s),
        "p itself is moved": with_options(band, centre=lambda p: p),
        "Phi of p is moved": with_options(band, centre=norm.cdf),
        "moves p by distance / sigma: it": with_options(
            band, centre=lambda p: p, out=lambda z: z),
        "moves p by distance / sigma and clips": with_options(
            band, centre=lambda p: p, out=lambda z: min(max(z, 0.0), 1.0)),
        "moves p by the distance: it": with_options(
            band, centre=lambda p: p, out=lambda z: z, shift=lambda d, s: d),
        "the band of the other classes": lambda p, d, s: band(1 - p, d, s),
        "Phi of them is missing": with_options(band, out=lambda z: z),
        "Phi of a moved quantile": with_options(band, centre=norm.cdf, out=norm.ppf),
        "expected two values": lambda *given: band(*given)[0],
        "twice the lowest": lambda *given: (band(*given)[0],) * 2,
    },
    "radius_at": {
        "compare with the label": highest_with(values=lambda right, radius: radius),
        "a share of the correct images": highest_with(images=lambda right, said: right.sum()),
        "an abstention counts as an error": highest_with(
            images=lambda right, said: (said != -1).sum()),
        "one image too few": highest_with(more=-1),
        "one image too many": highest_with(more=1),
        "at least the share is enough": lambda c, p, s, share: highest(
            c, p, s, (math.floor(share * len(c)) + 1) / len(c)),
        "the smallest radius of a correct image": lambda c, p, s, share: s[p == c].min(),
        "the largest radius of all": lambda c, p, s, share: s[p == c].max(),
        "as numpy.quantile does": by_quantile(),
        "interpolates over the correct images alone": by_quantile(
            lambda right, radius: radius[right]),
        "radius 0 reaches the share": lambda c, p, s, share: 0.0,
        "not even radius 0": lambda c, p, s, share: highest(c, p, s, share) or s.max(),
        "near, but not exact": on_a_grid,
        "this is the accuracy": lambda c, p, s, share: (p == c).mean(),
        "the share from below": lambda c, p, s, share: np.quantile(
            np.where(p == c, s, 0), share, method="inverted_cdf"),
    },
    "radius_p_value": {
        "k itself belongs": with_options(p_value, tail=binom.sf),
        "the other tail: small": with_options(p_value, tail=binom.cdf),
        "the other tail, without k": with_options(
            p_value, tail=lambda k, n, p: binom.cdf(k - 1, n, p)),
        "the probability of exactly k": with_options(p_value, tail=binom.pmf),
        "two-sided": with_options(p_value, tail=lambda k, n, p: binomtest(k, n, p).pvalue),
        "twice the tail": lambda *given: min(1.0, 2 * p_value(*given)),
        "sigma is missing": with_options(p_value, of=lambda r, s: r),
        "sigma squared": with_options(p_value, of=lambda r, s: r / s**2),
        "times sigma": with_options(p_value, of=lambda r, s: r * s),
        "what the others may have": with_options(p_value, of=lambda r, s: -r / s),
        "tests against 1/2": with_options(p_value, of=lambda r, s: 0.0),
        "half of the radius": with_options(p_value, of=lambda r, s: r / s / 2),
        "twice the radius": with_options(p_value, of=lambda r, s: 2 * r / s),
        "the normal approximation: take": with_options(p_value, tail=bell),
        "the normal approximation, corrected": with_options(
            p_value, tail=lambda k, n, p: bell(k, n, p, 0.5)),
        "returns (": lambda *given: (p_value(*given), given[0]),
    },
}  # fmt: skip
