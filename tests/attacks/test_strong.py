"""Auto-PGD against a literal version of its algorithm, Square against its own rules."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers import Linear

from trustml_helpers import attacks, models, robustness
from trustml_helpers.attacks import strong


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def literal_auto_pgd(f_of, x, eps, start, steps):
    """Algorithm 1 of Croce & Hein (2020) for ONE image in l-inf, written as in the paper."""

    def f(z):
        z = z.clone().requires_grad_()
        value = f_of(z).sum()
        return value.item(), torch.autograd.grad(value, z)[0]

    project = lambda z: torch.minimum(torch.maximum(z, x - eps), x + eps).clamp(0, 1)  # noqa: E731
    points, period = [0.0, 0.22], 0.22
    while points[-1] < 1:
        period = max(period - 0.03, 0.06)
        points.append(points[-1] + period)
    checks = {int(p * steps + 1e-9) for p in points}
    before = x_k = project(start)
    value, gradient = f(x_k)
    top, top_value = (x_k, gradient), value
    size, since, rises, last_top, halved = 2 * eps, 0, 0, value, True
    values = [value]
    for k in range(1, steps + 1):
        ahead = project(x_k + size * gradient.sign())
        a = 1.0 if k == 1 else 0.75
        x_k, before = project(x_k + a * (ahead - x_k) + (1 - a) * (x_k - before)), x_k
        now, gradient = f(x_k)
        rises, since, value = rises + (now > value), since + 1, now
        values.append(now)
        if now > top_value:
            top, top_value = (x_k, gradient), now
        if k in checks:
            halved, last_top = (
                rises < 0.75 * since or (not halved and top_value == last_top),
                top_value,
            )
            if halved:
                size, (x_k, gradient) = size / 2, top
            rises = since = 0
    return top_value


@pytest.fixture(scope="module")
def digits():
    g = seeded(3)
    model = models.build("SmallCNN", seed=2).double()
    return model, torch.rand(5, 1, 28, 28, generator=g, dtype=torch.float64), torch.arange(5)


@pytest.mark.parametrize("steps", [100, 200])
def test_auto_pgd_is_the_published_algorithm(steps):
    """A wavy loss on which every rule matters: the same largest value, row by row, though rows run
    together. (The second class can never win, so no row stops.)"""
    g = seeded(15)  # row 6: a halving after which the next checkpoint must not halve again
    a = 9 * torch.randn(6, 5, generator=g, dtype=torch.float64)
    wave = lambda z: (z @ a).sin().sum(1) + 3 * z.square().sum(1)  # noqa: E731
    model = lambda z: torch.stack([-wave(z), torch.full((len(z),), -1e3).double()], 1)  # noqa: E731
    x, y = torch.rand(40, 6, generator=g, dtype=torch.float64), torch.zeros(40, dtype=torch.long)
    found = attacks.auto_pgd(model, x, y, 0.3, steps=steps, loss="margin", generator=seeded(1))
    start = x + 0.3 * attacks.NORMS["linf"].uniform(x, seeded(1))
    expected = [literal_auto_pgd(wave, x[[k]], 0.3, start[[k]], steps) for k in range(12)]
    assert torch.allclose(wave(found[:12]), torch.tensor(expected).double(), atol=1e-5)


def test_auto_pgd_halves_its_step_where_the_loss_oscillates():
    """f = -|x - 1/2|: a constant step jumps over the top for ever, Auto-PGD comes close."""
    model = lambda z: torch.cat([z.sub(0.503).abs().sum(1, keepdim=True), z * 0 - 9], 1)  # noqa: E731
    x, y = torch.full((3, 1), 0.3, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    near = attacks.auto_pgd(model, x, y, 0.25, loss="margin", steps=100, generator=seeded())
    assert (near - 0.503).abs().max() < 1e-3
    far = attacks.pgd(model, x, y, 0.25, loss="margin", steps=100, step_size=0.1, keep="last",
                      random_start=False)  # fmt: skip
    assert (far - 0.503).abs().min() > 1e-2


def test_auto_pgd_counts_its_passes_and_drops_what_is_fooled(digits):
    model, x, _ = digits
    seen: list[int] = []
    spy = lambda z: seen.append(len(z)) or model(z)  # noqa: E731
    attacks.auto_pgd(spy, x, models.predict(model, x), 1e-5, steps=9, generator=seeded())
    assert seen == [5] * 10
    seen.clear()
    other = (models.predict(model, x) + 1) % 10  # fooled from the start
    found = attacks.auto_pgd(spy, x, other, 0.1, steps=9, keep="first", generator=seeded())
    assert seen == [5]
    assert (models.predict(model, found) != other).all()


def test_targets_are_tried_from_the_likeliest_on():
    """Two features, four classes: only the third likeliest other can be reached."""
    bias = torch.tensor([1.0, 0.9, 0.8, -0.5])
    weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 8.0]])
    model = lambda z: bias + z @ weights  # noqa: E731
    x, y = torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)
    assert strong._likeliest_others(model(x), y, 3).tolist() == [[1, 2, 3]] * 2
    found = attacks.auto_pgd(model, x, y, 0.3, steps=10, targets=3, generator=seeded())
    assert (models.predict(model, found) == 3).all()


@pytest.mark.slow
def test_auto_pgd_finds_what_one_run_of_pgd_finds():
    """On the robust checkpoint at 0.3: at least as strong as PGD with as many steps."""
    from trustml_helpers import data

    model = models.load("mnist_smallcnn_adversarial")
    x, y = (part[:150] for part in data.load_mnist("test"))
    by_pgd = robustness.robust_accuracy(
        model, x, y, partial(attacks.pgd, eps=0.3, steps=40, keep="first", generator=seeded())
    )
    strong = attacks.suite(0.3, steps=40, queries=300, generator=seeded())
    assert robustness.robust_accuracy(model, x, y, strong.values()) <= by_pgd


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_fools_without_gradients(norm):
    """A model that cannot be differentiated: brightness of the left half, rounded."""

    def model(z):
        left = (200 * z[:, 0, :, :4].mean((1, 2))).detach().round() / 200
        return torch.stack([left, torch.full_like(left, 0.5)], 1)

    x, y = torch.full((20, 1, 8, 8), 0.52), torch.zeros(20, dtype=torch.long)
    eps = {"linf": 0.1, "l2": 0.8, "l1": 6.0}[norm]
    with pytest.raises(attacks.NotDifferentiable):
        attacks.pgd(model, x, y, eps, norm=norm, loss="margin")
    found = attacks.square(model, x, y, eps, norm=norm, queries=100, generator=seeded())
    assert (models.predict(model, found) == 1).all()


def test_square_begins_with_stripes_at_the_wall_and_moves_windows():
    x, y, seen = torch.full((1, 2, 10, 10), 0.5), torch.tensor([0]), []

    def model(z):
        seen.append(z.clone())
        brightness = z.flatten(1).sum(1)
        return torch.stack([brightness + 900, 0 * brightness], 1)

    attacks.square(model, x, y, 0.25, queries=60, window=0.5, generator=seeded())
    deltas = torch.cat(seen) - 0.5
    assert torch.allclose(deltas.abs(), torch.tensor(0.25))  # every pixel at the wall, always
    assert (deltas[0] == deltas[0, :, :1]).all()  # columns of one sign
    # After the last halving the window is a single pixel; a step changes nothing else.
    assert all((a != b).any(0).sum() <= 1 for a, b in zip(deltas[-2:-1], deltas[-1:], strict=True))


def test_square_windows_have_the_stated_size_and_reach_every_place():
    """10,000 windows of 3 x 3 in 6 x 8: each place is left out with probability below 1e-100."""
    x = torch.zeros(10_000, 2, 6, 8)
    moves = strong._windows(x, 9 / 48, seeded())
    assert (moves.abs().sum((1, 2, 3)) == 18).all()
    corners = {tuple(place) for place in moves[:, 0].abs().flatten(1).argmax(1)[:, None].tolist()}
    assert len(corners) == 4 * 6
    assert set(moves.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_square_asks_no_more_than_it_says_and_never_about_the_fooled():
    model, seen = Linear(torch.tensor([1.0, 2.0])), []
    spy = lambda z: seen.append(len(z)) or model(z)  # noqa: E731
    x = torch.full((6, 2), 0.5)
    y = models.predict(model, x)
    y[:2] = 1 - y[:2]  # two are wrong already
    attacks.square(spy, x, y, 0.1, queries=7, generator=seeded())
    assert seen == [6] + [4] * 6


def test_flat_inputs_are_one_row_of_pixels():
    model = Linear(torch.linspace(-1, 1, 9))
    x = torch.full((4, 9), 0.5)
    y = models.predict(model, x)
    found = attacks.square(model, x, y, 0.2, queries=200, generator=seeded())
    assert found.shape == x.shape
    assert (models.predict(model, found) != y).all()


def test_same_seed_same_result(digits):
    model, x, y = digits
    for attack in (
        partial(attacks.auto_pgd, steps=3), partial(attacks.square, queries=5), attacks.fgsm_rs,
    ):  # fmt: skip
        run = lambda seed: attack(model, x, y, 0.05, generator=seeded(seed))  # noqa: E731, B023
        assert torch.equal(run(3), run(3))
        assert not torch.equal(run(3), run(4))


def test_suite_fits_the_number_of_classes():
    assert list(attacks.suite(0.1)) == ["APGD-CE", "APGD-T", "Square"]
    two = attacks.suite(0.3, num_classes=2, steps=3, queries=3, generator=seeded())
    assert list(two) == ["APGD-CE", "APGD-margin", "Square"]
    model, x = Linear(torch.tensor([1.0, 1.0])), torch.full((2, 2), 0.1)
    assert robustness.robust_accuracy(model, x, models.predict(model, x), two.values()) == 1


def test_more_targets_than_other_classes(digits):
    with pytest.raises(ValueError, match="9 other classes"):
        attacks.auto_pgd(*digits, 0.1, targets=10)


# --- targets, and parts of a batch ----------------------------------------------------------------


def test_targeted_auto_pgd_on_a_linear_network():
    """Against every corner of the cube: it reaches the class if one of them does."""
    w = torch.randn(3, 6, generator=seeded(5), dtype=torch.float64)
    x = torch.full((4, 6), 0.5, dtype=torch.float64)
    network = lambda z: 3 * (z @ w.T)  # noqa: E731
    for target in range(3):
        y = torch.full((4,), target)
        found = attacks.auto_pgd(network, x, y, 0.3, targeted=True, steps=60, generator=seeded())
        corners = torch.cartesian_prod(*[torch.tensor([0.2, 0.8]).double()] * 6)
        losses = torch.nn.functional.cross_entropy(
            network(corners), y[:1].expand(64), reduction="none"
        )
        loss = torch.nn.functional.cross_entropy(network(found), y, reduction="none")
        reached = network(found).argmax(1) == target
        assert reached.all() == (network(corners).argmax(1) == target).any()
        assert (loss <= 1.05 * losses.min() + 1e-3).all()


def test_targets_and_a_target_exclude_each_other():
    with pytest.raises(ValueError, match="targets=2: with targeted=True the class is y"):
        attacks.auto_pgd(lambda z: z, torch.zeros(1, 3), torch.tensor([0]), 0.1, targets=2,
                         targeted=True)  # fmt: skip


BATCHED = {
    "fgsm": partial(attacks.fgsm, eps=0.1),
    "pgd": partial(attacks.pgd, eps=0.1, steps=4, restarts=2),
    "pgd, first": partial(attacks.pgd, eps=0.1, steps=4, keep="first", norm="l2"),
    "pgd, last": partial(attacks.pgd, eps=0.1, steps=4, keep="last", norm="l1"),
    "pgd_smoothed": partial(attacks.pgd_smoothed, eps=0.1, sigma=0.2, samples=3, steps=3),
    "auto_pgd": partial(attacks.auto_pgd, eps=0.1, steps=6),
    "auto_pgd, targets": partial(attacks.auto_pgd, eps=0.1, steps=6, targets=2),
    "square": partial(attacks.square, eps=0.1, queries=8),
}


@pytest.mark.parametrize("name", BATCHED)
def test_the_result_does_not_depend_on_the_batch_size(name):
    w = torch.randn(16, 4, generator=seeded(5), dtype=torch.float64)
    x = torch.rand(7, 1, 4, 4, generator=seeded(6), dtype=torch.float64)
    y, seen = torch.arange(7) % 4, []

    def network(z):
        seen.append(len(z))
        return torch.tanh(z.flatten(1) @ w)

    attack, copies = BATCHED[name], 3 if name == "pgd_smoothed" else 1
    random = {} if name == "fgsm" else {"generator": seeded(2)}
    whole = attack(network, x, y, **random)
    assert max(seen) == 7 * copies
    seen.clear()
    random = {} if name == "fgsm" else {"generator": seeded(2)}
    parts = attack(network, x, y, batch_size=3, **random)
    assert max(seen) == 3 * copies
    assert torch.allclose(whole, parts, atol=1e-12, rtol=0)


def test_a_set_of_noise_per_image_is_not_divided():
    with pytest.raises(ValueError, match="batch_size: a set of noise per image is not divided"):
        attacks.pgd_smoothed(lambda z: z, torch.zeros(2, 3), torch.tensor([0, 1]), 0.1, 0.2,
                             noise=torch.zeros(2, 5, 3), keep="last", batch_size=1)  # fmt: skip


def test_every_restart_of_auto_pgd_runs():
    calls, weights = [], torch.tensor([[1.0, -2.0], [0.0, 0.0]])

    def model(z):
        calls.append(len(z))
        return z @ weights.T + torch.tensor([10.0, 0.0])  # never fooled

    counts = []
    for restarts in (1, 3):
        calls.clear()
        attacks.auto_pgd(
            model, torch.full((1, 2), 0.5), torch.tensor([0]), 0.1, steps=5, restarts=restarts
        )
        counts.append(len(calls))
    assert counts[1] == 3 * counts[0]


@pytest.mark.parametrize("classes", [4, 5, 9])
def test_the_suite_aims_at_every_other_class_where_there_are_few(classes):
    weights = torch.randn(classes, 6, generator=seeded(classes))
    suite = attacks.suite(0.05, num_classes=classes, steps=3, queries=5)
    assert list(suite) == ["APGD-CE", "APGD-T", "Square"]
    assert suite["APGD-T"].keywords["targets"] == classes - 1
    x = torch.rand(3, 6, generator=seeded())
    suite["APGD-T"](lambda z: z @ weights.T, x, (x @ weights.T).argmax(1))


def test_nan_logits_count_as_fooled_for_a_target_too():
    for logits, target in (([[torch.nan, 0.0]], 1), ([[0.0, torch.nan]], 0)):
        assert attacks.is_fooled(torch.tensor(logits), torch.tensor([target]), True).all()


@pytest.mark.parametrize("attack", [
    lambda *given: attacks.pgd(*given, 0.01, steps=0, restarts=4, generator=seeded(2)),
    lambda *given: attacks.square(*given, 0.01, queries=30, generator=seeded(2)),
], ids=["pgd", "square"])  # fmt: skip
def test_what_a_row_finds_does_not_depend_on_those_that_are_fooled(attack):
    weights = torch.randn(3, 16, generator=seeded(5))
    x = torch.rand(6, 1, 4, 4, generator=seeded())

    def model(z):
        return z.flatten(1) @ weights.T

    y = model(x).argmax(1)
    other = y.clone()
    other[0] = (y[0] + 1) % 3  # fooled from the start
    assert torch.equal(attack(model, x, y)[1:], attack(model, x, other)[1:])
