"""Answers to the "Your turn" of the notebooks beyond the lecture, right and wrong; see
``homework_answers``."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import beta, binom, hypergeom, norm

from trustml_helpers import bounds

# --- the ladder of possible radii -----------------------------------------------------------------


def ladder(alpha, n, sigma, steps, *, first=0, spread=1, shrink=0, scale=1.0):
    k = n - first - np.arange(steps)
    size = n - shrink * np.arange(steps)
    return scale * bounds.certified_radius(bounds.lower_conf_bound(k, size, alpha / spread), sigma)


def ladder_loop(alpha, n, sigma, steps):
    return [sigma * norm.ppf(beta.ppf(alpha, n - j, j + 1)) for j in range(steps)]


def ladder_of_shares(alpha, n, sigma, steps):
    return sigma * norm.ppf((n - np.arange(steps)) / n)


# --- ever crossing --------------------------------------------------------------------------------


def crosses(p, looks, success, *, more=0, keep=False):
    alive, crossed, before = np.ones(1), 0.0, 0
    for look, least in zip(looks, success, strict=True):
        alive = np.convolve(alive, binom.pmf(np.arange(look - before + 1), look - before, p))
        crossed += alive[least + more :].sum()
        alive = alive if keep else alive[: least + more]
        before = look
    return crossed


def crosses_dictionary(p, looks, success):
    mass, crossed, votes = {0: 1.0}, 0.0, 0
    for look, least in zip(looks, success, strict=True):
        while votes < look:
            after = {}
            for count, share in mass.items():
                after[count] = after.get(count, 0) + share * (1 - p)
                after[count + 1] = after.get(count + 1, 0) + share * p
            mass, votes = after, votes + 1
        crossed += sum(share for count, share in mass.items() if count >= least)
        mass = {count: share for count, share in mass.items() if count < least}
    return crossed


def independent(p, looks, success):
    return 1 - np.prod(binom.cdf(success - 1, looks, p))


# --- when to stop ---------------------------------------------------------------------------------


def stop(votes, looks, success, futility, *, strict=0, gives_up=True, place=False, turned=False):
    for at, (count, look) in enumerate(zip(votes, looks, strict=True)):
        crossed = count >= success[at] + strict
        if crossed or (gives_up and count <= futility[at]):
            return crossed != turned, (at if place else int(look))
    return False, int(looks[-1])


def stop_vectorised(votes, looks, success, futility):
    certified = votes >= success
    at = int(np.argmax(certified | (votes <= futility)))
    return certified[at], looks[at]


# --- consistency ----------------------------------------------------------------------------------


def consistency(logits, y, lam, eta, fault=""):
    log_p = logits.log_softmax(2)
    mean = logits.mean(1).softmax(1) if fault == "logits" else log_p.exp().mean(1)
    right = -log_p.mean(1).gather(1, y[:, None])[:, 0]
    if fault == "of the mean":
        right = -mean.log().gather(1, y[:, None])[:, 0]
    apart = (mean * (mean.log() - log_p.mean(1))).sum(1)
    if fault == "swapped":
        apart = (log_p.exp() * (log_p - mean.log()[:, None])).sum(2).mean(1)
    entropy = -(mean * mean.log()).sum(1) * (-1 if fault == "sign" else 1)
    each = right + lam * apart + eta * entropy
    return each.sum() if fault == "sum" else each.mean()


def consistency_loop(logits, y, lam, eta):
    total = 0.0
    for image, label in zip(logits.double(), y, strict=True):
        copies = [copy.softmax(0) for copy in image]
        mean = sum(copies) / len(copies)
        for p in copies:
            total += (-p[label].log() + lam * (mean * (mean / p).log()).sum()) / len(copies)
        total -= eta * (mean * mean.log()).sum()
    return total / len(y)


# --- paired gains ---------------------------------------------------------------------------------


def paired(new, old, *, turned=1, ddof=1, power=0.5):
    apart = turned * (new - old)
    return apart.mean(), apart.std(ddof=ddof) / len(apart) ** power


def paired_torch(new, old):
    apart = torch.as_tensor(new) - torch.as_tensor(old)
    return apart.mean(), apart.std() / math.sqrt(len(apart))


def unpaired(new, old):
    return (new - old).mean(), math.sqrt((new.var(ddof=1) + old.var(ddof=1)) / len(new))


# --- groups of classes ----------------------------------------------------------------------------


def group_votes(counts, group):
    return torch.zeros(int(group.max()) + 1, dtype=torch.int64).index_add(0, group, counts)


def group_votes_loop(counts, group):
    return [int(counts[group == g].sum()) for g in range(int(group.max()) + 1)]


def by_group(summary):
    return lambda counts, group: torch.stack(
        [summary(counts[group == g]) for g in range(int(group.max()) + 1)]
    )


# --- other noise ----------------------------------------------------------------------------------


def ablated(p_a, d, k, *, more=0, less=1.0, level=0.5, back=False):
    rho = 0
    while rho < d - k:
        hidden = (1 - (rho + 1) / d) ** k if back else math.comb(d - rho - 1, k) / math.comb(d, k)
        if p_a - less * (1 - hidden) <= level:
            break
        rho += 1
    return rho + more


def ablated_by_factors(p_a, d, k):
    hidden, rho = 1.0, 0
    while hidden * (d - k - rho) / (d - rho) > 1.5 - p_a:
        hidden *= (d - k - rho) / (d - rho)
        rho += 1
    return np.int64(rho)


def l1(p_a, sigma, *, wide=3**0.5, narrow=2**0.5, factor=2, above=0.5, sign=-1, log=2):
    uniform = factor * wide * sigma * (p_a - above)
    return uniform, sign * sigma / narrow * math.log(log * (1 - p_a))


def l1_arrays(p_a, sigma):
    left = torch.tensor(2 - 2 * p_a, dtype=torch.float64)
    return [np.sqrt(3) * sigma * (2 * np.float64(p_a) - 1), -sigma / 2**0.5 * left.log()]


def defended(m, suffix, swaps, k, copies, *, more=0, back=False, tie=0.0):
    law = binom(swaps, suffix / m) if back else hypergeom(m, suffix, swaps)
    return binom.sf(math.ceil(copies / 2 + tie) - 1, copies, law.sf(k - 1 + more))


def defended_by_sums(m, suffix, swaps, k, copies):
    ways = [math.comb(suffix, i) * math.comb(m - suffix, swaps - i)
            for i in range(k, min(suffix, swaps) + 1)]  # fmt: skip
    one = sum(ways) / math.comb(m, swaps)
    return sum(math.comb(copies, t) * one**t * (1 - one) ** (copies - t)
               for t in range(copies + 1) if 2 * t >= copies)  # fmt: skip


def with_options(function, **options):
    return lambda *given: function(*given, **options)


RIGHT = {
    "ladder": [ladder, ladder_loop],
    "ever_crosses": [crosses, crosses_dictionary],
    "when_to_stop": [stop, stop_vectorised],
    "consistency_loss": [consistency, consistency_loop],
    "paired_gain": [paired, paired_torch],
    "group_votes": [group_votes, group_votes_loop],
    "ablation_radius": [ablated, ablated_by_factors],
    "l1_radii": [l1, l1_arrays],
    "defence_success": [defended, defended_by_sums],
}
WRONG = {
    "ladder": {
        "one vote below the top": with_options(ladder, first=1),
        "the bound is one-sided": with_options(ladder, spread=2),
        "n stays, the count k falls": with_options(ladder, shrink=1),
        "an infinite radius": ladder_of_shares,
        "sigma is missing": lambda alpha, n, sigma, steps: ladder(alpha, n, 1.0, steps),
        "the smallest first": lambda *given: ladder(*given)[::-1].copy(),
    },
    "ever_crosses": {
        "remove the runs that crossed before": with_options(crosses, keep=True),
        "exactly success crosses too": with_options(crosses, more=1),
        "they share their votes": independent,
        "the last look alone": lambda p, n, u: binom.sf(u[-1] - 1, n[-1], p),
        "never crossing": lambda *given: 1 - crosses(*given),
    },
    "when_to_stop": {
        "at the first look with": with_options(stop, gives_up=False),
        "stops after": with_options(stop, strict=1),
        "the place of the look": with_options(stop, place=True),
        "given up with": with_options(stop, turned=True),
        "expected two values: (certified, samples)": lambda *given: stop(*given)[0],
    },
    "consistency_loss": {
        "the cross-entropy of the mean": with_options(consistency, fault="of the mean"),
        "the mean comes first": with_options(consistency, fault="swapped"),
        "the entropy has the wrong sign": with_options(consistency, fault="sign"),
        "a sum over the images": with_options(consistency, fault="sum"),
        "average the probabilities": with_options(consistency, fault="logits"),
        "lam and eta are swapped": lambda z, y, lam, eta: consistency(z, y, eta, lam),
    },
    "group_votes": {
        "its classes add up": by_group(lambda votes: votes.max()),
        "not their votes": lambda counts, group: group.bincount(),
        "shares, not votes": lambda counts, group: group_votes(counts, group) / counts.sum(),
        "the mean of the classes": by_group(lambda votes: votes.double().mean()),
        "returns shape": lambda counts, group: counts,
    },
    "ablation_radius": {
        "one too many": with_options(ablated, more=1),
        "1/2 is missing": with_options(ablated, level=0.0),
        "takes the change off twice": with_options(ablated, less=2.0),
        "k are kept": lambda p_a, d, k: ablated(p_a, d, d - k),
        "puts the pixels back": with_options(ablated, back=True),
    },
    "l1_radii": {
        "L is sqrt(3) sigma": with_options(l1, wide=1.0),
        "the cube is 2 L wide": with_options(l1, factor=1),
        "not p_a itself": with_options(l1, above=0.0),
        "uniform noise first": lambda *given: l1(*given)[::-1],
        "b is sigma / sqrt(2)": with_options(l1, narrow=1.0),
        "the wrong sign": with_options(l1, sign=1),
        "the factor 2 in the logarithm": with_options(l1, log=1),
        "expected two values: (uniform, laplace)": lambda *given: l1(*given)[0],
    },
    "defence_success": {
        "exactly k of its characters": with_options(defended, more=1),
        "without repeats": with_options(defended, back=True),
        "a tie counts for the attack": with_options(defended, tie=0.5),
        "the attack succeeds": lambda *given: 1 - defended(*given),
        "one copy alone": lambda m, suffix, swaps, k, copies: hypergeom.sf(
            k - 1, m, suffix, swaps),
    },
    "paired_gain": {
        "take the deviation of the differences": unpaired,
        "a gain is new minus old": with_options(paired, turned=-1),
        "ddof=1": with_options(paired, ddof=0),
        "divide by the root": with_options(paired, power=0),
        "divides by n twice": with_options(paired, power=1),
        "expected two values: (gain, error)": lambda new, old: (new - old).mean(),
    },
}  # fmt: skip
