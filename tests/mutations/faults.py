"""Deliberate faults: each must turn the tests named beside it red. Run them: see ``plant.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One file, changed; and the tests, as pytest takes them, that must notice."""

    what: str
    file: str
    change: Callable[[str], str]
    tests: str
    fast: bool = False  # also part of `make test`


def swap(old: str, new: str) -> Callable[[str], str]:
    """The only occurrence of ``old`` becomes ``new``."""

    def change(text: str) -> str:
        if text.count(old) != 1:
            raise ValueError(f"occurs {text.count(old)} times, expected once: {old!r}")
        return text.replace(old, new)

    return change


def cells(edit: Callable[[dict], None]) -> Callable[[str], str]:
    """Every code cell of a notebook, edited in place."""

    def change(text: str) -> str:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                edit(cell)
        return json.dumps(notebook)

    return change


def first_cell(line: str) -> Callable[[str], str]:
    """A line put before the first code cell's."""

    def change(text: str) -> str:
        notebook = json.loads(text)
        cell = next(each for each in notebook["cells"] if each["cell_type"] == "code")
        cell["source"] = [line + "\n", *cell["source"]]
        return json.dumps(notebook)

    return change


def strip(cell: dict) -> None:
    cell |= {"outputs": [], "execution_count": None}


def unnamed(cell: dict) -> None:
    for output in cell["outputs"]:
        output["metadata"] = {}


PACKAGE = "trustml_helpers"
PROOF = "notebooks/04_proof_of_the_radius.ipynb"
GRADING = "trustml_helpers/checks/grading"
HOMEWORK = "notebooks/homework/source/hw1/hw1.ipynb"

FAULTS = [
    # Attacks
    Fault("no projection", f"{PACKAGE}/attacks/gradient.py",
          swap("x_adv = project(ball.ascend(x_adv, direction, step_size, bounds))",
               "x_adv = ball.ascend(x_adv, direction, step_size, bounds)"),
          "tests/attacks/test_gradient.py -k feasible", fast=True),
    Fault("no random start", f"{PACKAGE}/attacks/gradient.py",
          swap("begin = x + eps * ball.uniform(x, generator) if random_start and start is None "
               "else x", "begin = x"),
          "tests/attacks/test_gradient.py -k random_start"),
    Fault("the same start at every restart", f"{PACKAGE}/attacks/gradient.py",
          swap("        for _ in range(restarts):\n",
               "        for _ in range(restarts):\n"
               "            generator = torch.Generator().manual_seed(0)\n"),
          "tests/attacks/test_gradient.py -k restart"),
    Fault("ascent turned into descent", f"{PACKAGE}/attacks/norms.py",
          swap("return x + length * gradient.sign()", "return x - length * gradient.sign()"),
          "tests/attacks/test_gradient.py -k closed_form", fast=True),
    Fault("a step in l2 not normalised", f"{PACKAGE}/attacks/norms.py",
          swap("return x + length * _l2_unit(gradient)", "return x + length * gradient"),
          "tests/attacks/test_gradient.py -k closed_form"),
    Fault("the l1 step in one pixel only", f"{PACKAGE}/attacks/norms.py",
          swap("moves = torch.minimum((budget - spent_before).clamp(min=0), room)",
               "moves = torch.minimum((budget - spent_before).clamp(min=0), room)\n"
               "    moves[:, 1:] = 0"),
          "tests/attacks/test_norms.py"),
    Fault("l2: projected on the ball, then clipped", f"{PACKAGE}/attacks/norms.py",
          swap("            if not moved.any():\n                break",
               "            break"),
          "tests/attacks/test_norms.py"),
    Fault("start uniform in radius, not in the ball", f"{PACKAGE}/attacks/norms.py",
          swap(" ** (1 / max(x[:1].numel(), 1))", ""),
          "tests/attacks/test_norms.py -k random_start"),
    Fault("cross-entropy mean for sum in the gradient", f"{PACKAGE}/attacks/search.py",
          swap("torch.autograd.grad(value.sum(), x,", "torch.autograd.grad(value.mean(), x,"),
          "tests/attacks/test_gradient.py -k dilute"),
    Fault('restart rule "largest loss"', f"{PACKAGE}/attacks/search.py",
          swap("better = (fooled & ~before) | ((fooled == before) & (value >= self.value[rows]))",
               "better = value >= self.value[rows]"),
          "tests/attacks/test_gradient.py -k keep_best"),
    Fault("last step not evaluated", f"{PACKAGE}/attacks/gradient.py",
          swap("            if len(rows):\n"
               "                best.update(rows, x_adv, *goal.evaluate(x_adv, target))",
               "            pass"),
          "tests/attacks/test_gradient.py -k last_step"),
    Fault("a NaN logit counts as robust", f"{PACKAGE}/attacks/search.py",
          swap("(hit if targeted else ~hit) | logits.isnan().any(1)",
               "(hit if targeted else ~hit) & ~logits.isnan().any(1)"),
          "tests/attacks/test_gradient.py -k nan"),
    Fault("the margin includes the true class", f"{PACKAGE}/attacks/losses.py",
          swap("others = logits.scatter(1, label, -math.inf).amax(1)",
               "others = logits.amax(1)"),
          "tests/attacks/test_gradient.py -k margin_and_cross_entropy"),
    Fault("DLR over first minus second logit", f"{PACKAGE}/attacks/losses.py",
          swap("(largest[:, 0] - largest[:, 2] + _tiny(logits))",
               "(largest[:, 0] - largest[:, 1] + _tiny(logits))"),
          "tests/attacks/test_gradient.py -k dlr"),
    Fault("targeted attacks avoid their target", f"{PACKAGE}/attacks/search.py",
          swap("value = -self.loss(logits, y) if self.targeted else self.loss(logits, y)",
               "value = self.loss(logits, y)"),
          "tests/attacks/test_gradient.py -k targeted"),
    Fault("the network stays in training mode under attack", f"{PACKAGE}/_support/calling.py",
          swap("                module.training = False\n", "                pass\n"),
          "tests/support/test_calling.py -k unchanged"),
    Fault(".grad of the network is lost by an attack", f"{PACKAGE}/_support/calling.py",
          swap("parameter.grad = gradient", "parameter.grad = None"),
          "tests/support/test_calling.py -k unchanged"),
    Fault("worst case counted per attack, not per example", f"{PACKAGE}/robustness/evaluation.py",
          swap("standing = standing & survived", "standing = survived"),
          "tests/robustness/test_evaluation.py -k matrix"),
    # Training
    Fault("mixed training attacks the clean share", f"{PACKAGE}/objectives.py",
          swap("x = torch.cat([x[:clean], attacked])", "x = attack(model, x, y)"),
          "tests/test_objectives.py -k mixed"),
    Fault("TRADES with the divergence turned round", f"{PACKAGE}/objectives.py",
          swap("divergence = F.kl_div(attacked, clean,", "divergence = F.kl_div(clean, attacked,"),
          "tests/test_objectives.py -k trades"),
    Fault("the order of the examples is never shuffled anew", f"{PACKAGE}/training/loop.py",
          swap("shuffled = torch.randperm(len(images), generator=order)",
               "shuffled = torch.randperm(len(images), generator=order.manual_seed(0))"),
          "tests/training/test_loop.py -k every_example"),
    Fault("the test set is read by training", f"{PACKAGE}/cli/train.py",
          swap('*first(data.load_mnist("train"), limit), validation',
               '*first(data.load_mnist("test"), limit), validation'),
          "tests/cli/test_cli.py -k test_set_is_read"),
    Fault("DDP ranks with the same noise", f"{PACKAGE}/training/loop.py",
          swap("generator.initial_seed() + 1_000_003 * us.rank", "generator.initial_seed()"),
          "tests/training/test_loop.py -k two_processes"),
    Fault("a resumed training repeats an epoch", f"{PACKAGE}/training/loop.py",
          swap("if epoch >= len(run.history):", "if epoch >= len(run.history) - 1:"),
          "tests/training/test_loop.py -k killed"),
    Fault("the first of equal best epochs is kept", f"{PACKAGE}/training/loop.py",
          swap('row[best] <= min(past[best] for past in run.history)',
               'row[best] < min([past[best] for past in run.history[:-1]] or [2])'),
          "tests/training/test_loop.py -k equal_epochs"),
    Fault("dropout draws what it finds", f"{PACKAGE}/training/loop.py",
          swap("torch.manual_seed(keyed_generator(seed, number).initial_seed())", "pass"),
          "tests/training/test_loop.py -k killed"),
    Fault("restored statistics spoil a loss computed before", f"{PACKAGE}/_support/calling.py",
          swap("now.data.copy_(before)", "now.copy_(before)"),
          "tests/test_objectives.py -k frozen"),
    Fault("labels on another device are not noticed", f"{PACKAGE}/_support/tensors.py",
          swap("if x.device != y.device:", "if False:"),
          "tests/support/test_tensors.py -k another_device"),
    # Noise in training
    Fault("noise variance for standard deviation", f"{PACKAGE}/objectives.py",
          swap("return sigma * draw(x.new_empty(len(x), samples",
               "return sigma**2 * draw(x.new_empty(len(x), samples"),
          "tests/test_objectives.py tests/test_noise_objectives.py -k gaussian"),
    Fault("noise not fresh per image", f"{PACKAGE}/objectives.py",
          swap("return sigma * draw(x.new_empty(len(x), samples, *x.shape[1:]), torch.randn, "
               "generator)",
               "one = draw(x.new_empty(1, samples, *x.shape[1:]), torch.randn, generator)\n"
               "    return sigma * one.expand(len(x), *one.shape[1:])"),
          "tests/test_noise_objectives.py -k fresh"),
    Fault("noisy training images clipped", f"{PACKAGE}/objectives.py",
          swap("logits = logits_of(model, (x[:, None] + noise).flatten(0, 1))",
               "logits = logits_of(model, (x[:, None] + noise).clamp(0, 1).flatten(0, 1))"),
          "tests/test_objectives.py -k not_clipped"),
    Fault("MACER rewards wrong predictions", f"{PACKAGE}/objectives.py",
          swap("top[(which[:, 0] == y) & (top[:, 0] < 1)", "top[(top[:, 0] < 1)"),
          "tests/test_noise_objectives.py -k macer"),
    Fault("SmoothAdv learns under other noise than it attacks", f"{PACKAGE}/objectives.py",
          swap("return _consistency(_logits_under(noise, model, x_adv), y, lam, eta)",
               "noise = _noise(x, samples, sigma, generator)\n"
               "        return _consistency(_logits_under(noise, model, x_adv), y, lam, eta)"),
          "tests/test_noise_objectives.py -k smoothadv"),
    Fault("SmoothAdv leaves its ball", f"{PACKAGE}/objectives.py",
          swap("z = x + way.renorm(2, 0, eps)", "z = x + way"),
          "tests/test_noise_objectives.py -k smoothadv"),
    Fault("CAT-RS counts the hardest noise", f"{PACKAGE}/objectives.py",
          swap("each.sort(1).values", "each.sort(1, descending=True).values"),
          "tests/test_noise_objectives.py -k cat_rs"),
    Fault("the running average forgets", f"{PACKAGE}/training/loop.py",
          swap("state.average.update_parameters(model)",
               "state.average.module.load_state_dict(model.state_dict())"),
          "tests/training/test_loop.py -k average"),
    Fault("consistency with the entropy's sign turned", f"{PACKAGE}/objectives.py",
          swap("lam * divergence + eta * entropy", "lam * divergence - eta * entropy"),
          "tests/test_noise_objectives.py -k consistency"),
    # Bounds and certificates
    Fault("Phi for its inverse", f"{PACKAGE}/bounds.py",
          swap("spread = special.ndtri(np.where(wins, a, 0.5)) - special.ndtri(",
               "spread = special.ndtr(np.where(wins, a, 0.5)) - special.ndtri("),
          "tests/test_bounds.py -k radii"),
    Fault("two-sided alpha", f"{PACKAGE}/bounds.py",
          swap("found = special.betaincinv(np.where(inside, k, 1), n - np.where(inside, k, 1) + 1, "
               "alpha)",
               "found = special.betaincinv(np.where(inside, k, 1), n - np.where(inside, k, 1) + 1, "
               "alpha / 2)"),
          "tests/test_bounds.py", fast=True),
    Fault("plug-in for the bound", f"{PACKAGE}/bounds.py",
          swap("found = special.betaincinv(np.where(inside, k, 1), n - np.where(inside, k, 1) + 1, "
               "alpha)", "found = k / n"),
          "tests/test_bounds.py"),
    Fault("one success too many in the bound", f"{PACKAGE}/bounds.py",
          swap("found = special.betaincinv(np.where(inside, k, 1), n - np.where(inside, k, 1) + 1, "
               "alpha)",
               "found = special.betaincinv(np.where(inside, k, 1) + 1, "
               "n - np.where(inside, k, 1) + 1, alpha)"),
          "tests/test_bounds.py -k coverage"),
    Fault("errors twice as frequent as promised", f"{PACKAGE}/smoothing/votes.py",
          swap("p_a = bounds.lower_conf_bound(k, n, alpha)",
               "p_a = bounds.lower_conf_bound(k, n, 2 * alpha)"),
          "tests/whole/test_error_rates.py"),
    Fault("selection samples reused", f"{PACKAGE}/smoothing/classifier.py",
          swap("        counts = self.sample_under_noise(x, n, generator, batch_size)\n"
               "        radius, p_a",
               "        counts = self.sample_under_noise(x, n, generator, batch_size)\n"
               "        top = counts.argmax(1)\n        radius, p_a"),
          "tests/smoothing/test_classifier.py -k selection_samples"),
    Fault("noise of the votes clipped", f"{PACKAGE}/smoothing/noise.py",
          swap("return drawn.add_(x)", "return drawn.add_(x).clamp_(0, 1)"),
          "tests/smoothing/test_classifier.py -k not_clipped"),
    Fault("votes under the same noise for all copies", f"{PACKAGE}/smoothing/noise.py",
          swap("return firsts[turn][0], buffer[:needed].view(shapes[turn])",
               "noise = buffer[:needed].view(shapes[turn])\n"
               "            noise.copy_(noise[:, :1].clone().expand_as(noise))\n"
               "            return firsts[turn][0], noise"),
          "tests/smoothing/test_classifier.py -k right_law"),
    Fault("votes under noise of variance sigma", f"{PACKAGE}/smoothing/noise.py",
          swap("numbers.normal_(0, self.sigma, generator=generator)",
               "numbers.normal_(0, math.sqrt(self.sigma), generator=generator)"),
          "tests/smoothing/test_classifier.py -k standard_deviation"),
    Fault("noise that depends on the batch size", f"{PACKAGE}/smoothing/noise.py",
          swap("left = buffer[needed:end].clone()", "left = buffer[end:end]"),
          "tests/smoothing/test_classifier.py -k depend_on_the_batch_size"),
    Fault("counts that wrap around", f"{PACKAGE}/smoothing/votes.py",
          swap("return counts.long()", "return counts"),
          "tests/smoothing/test_votes.py -k wrap_around"),
    Fault("rounding leads out of the ball", f"{PACKAGE}/attacks/norms.py",
          swap("while (outside := size(moved) > eps * (1 + 1e-6)).any():",
               "while (outside := size(moved) > eps * 1.2).any():"),
          "tests/attacks/test_norms.py -k leaves_the_ball"),
    Fault("votes of a network in training mode", f"{PACKAGE}/smoothing/classifier.py",
          swap("with unchanged(model):",
               "if True:"),
          "tests/smoothing/test_classifier.py -k left_as_found"),
    Fault("a NaN votes for class 0", f"{PACKAGE}/smoothing/classifier.py",
          swap("logits.argmax(1).masked_fill(~logits.isfinite().all(1), self.num_classes)",
               "logits.nan_to_num(0).argmax(1)"),
          "tests/smoothing/test_classifier.py -k not_finite"),
    Fault("abstention removed", f"{PACKAGE}/smoothing/votes.py",
          swap("return torch.where(sure, two.indices[:, 0].cpu(), ABSTAIN)",
               "return two.indices[:, 0].cpu()"),
          "tests/smoothing/test_classifier.py -k decide", fast=True),
    Fault("PREDICT with a one-sided test", f"{PACKAGE}/smoothing/votes.py",
          swap("p_value = np.minimum(1.0, 2 * stats.binom.sf(first - 1, first + second, 0.5))",
               "p_value = stats.binom.sf(first - 1, first + second, 0.5)"),
          "tests/smoothing/test_classifier.py -k decide"),
    Fault("the test one vote too generous", f"{PACKAGE}/smoothing/votes.py",
          swap("p_value = np.minimum(1.0, 2 * stats.binom.sf(first - 1, first + second, 0.5))",
               "p_value = np.minimum(1.0, 2 * stats.binom.sf(first, first + second, 0.5))"),
          "tests/smoothing/test_classifier.py -k decide"),
    Fault("the rival's bound left out", f"{PACKAGE}/smoothing/votes.py",
          swap("return sigma.radius(p_a, p_b), p_a", "return sigma.radius(p_a, others / n), p_a"),
          "tests/smoothing/test_votes.py tests/smoothing/test_classifier.py -k two_class"),
    # Other noise
    Fault("the interval of uniform noise taken for its deviation", f"{PACKAGE}/smoothing/noise.py",
          swap("return math.sqrt(3) * self.sigma", "return self.sigma"),
          "tests/smoothing/test_noise.py -k has_its_law", fast=True),
    Fault("Laplace noise of scale sigma", f"{PACKAGE}/smoothing/noise.py",
          swap("return self.sigma / math.sqrt(2)", "return self.sigma"),
          "tests/smoothing/test_noise.py -k has_its_law"),
    Fault("a Laplace radius from p_A alone with p_B left out", f"{PACKAGE}/smoothing/noise.py",
          swap("-np.log(1 - a + b))", "-np.log(1 - a))"),
          "tests/smoothing/test_noise.py -k neyman"),
    Fault("one pixel too many is certified", f"{PACKAGE}/smoothing/noise.py",
          swap("- Fraction(p_b)) - 1.0, 0.0)", "- Fraction(p_b)) + 0.0, 0.0)"),
          "tests/smoothing/test_noise.py -k 'worst_classifier or within_the_radius'"),
    Fault("removed pixels look black", f"{PACKAGE}/smoothing/noise.py",
          swap("return torch.cat([x * mask, (1 - x) * mask], 2)",
               "return torch.cat([x * mask, 1 - x * mask], 2)"),
          "tests/smoothing/test_noise.py -k black_is_not_absent"),
    Fault("a certificate of no pixels is an abstention", f"{PACKAGE}/smoothing/votes.py",
          swap("(radius > 0) | (p_a > 0.5)", "radius > 0"),
          "tests/smoothing/test_noise.py -k not_an_abstention"),
    Fault("two-class bound with all of alpha twice", f"{PACKAGE}/smoothing/votes.py",
          swap("SHARES = (0.9, 0.1)", "SHARES = (1.0, 1.0)"),
          "tests/smoothing/test_votes.py -k without_a_majority"),
    Fault("votes that were lost are forgotten", f"{PACKAGE}/smoothing/votes.py",
          swap("lost = n - counts.sum(1).cpu().numpy()", "lost = 0"),
          "tests/smoothing/test_classifier.py -k lost_vote"),
    Fault("radius rounded up", f"{PACKAGE}/certification/log.py",
          swap("    down = math.floor(radius * 1e6) / 1e6\n"
               "    return down if down <= radius else down - 1e-6",
               "    return math.ceil(radius * 1e6) / 1e6"),
          "tests/certification/test_run.py -k rounded_down"),
    Fault("one noise for all images", f"{PACKAGE}/certification/run.py",
          swap("keyed_generator(seed, number, images.device)",
               "keyed_generator(seed, 0, images.device)"),
          "tests/certification/test_run.py -k noise_of_its_own"),
    Fault("a resumed log repeats a row", f"{PACKAGE}/certification/run.py",
          swap("for number in order if number not in done]", "for number in order]"),
          "tests/certification/test_run.py -k certified_again"),
    Fault("rows are written at the end only", f"{PACKAGE}/_support/ledger.py",
          swap('path.open("ab", buffering=0)', 'path.open("ab", buffering=1 << 20)'),
          "tests/certification/test_run.py -k each_row_is_on_disk"),
    Fault("a half-written row is accepted", f"{PACKAGE}/_support/ledger.py",
          swap('return text[: text.rfind("\\n") + 1].splitlines(keepends=True) or [""]',
               'return text.splitlines(keepends=True) or [""]'),
          "tests/certification/test_run.py -k kill"),
    Fault("another network goes on with the log", f"{PACKAGE}/_support/ledger.py",
          swap('if value is None or known.get(name) == value:',
               'if value is None or known.get(name) == value or name == "model_sha256":'),
          "tests/certification/test_run.py -k another_model"),
    Fault("abstentions count in the ACR", f"{PACKAGE}/certification/log.py",
          swap('return np.where(log["correct"] == 1, log["radius"], 0.0)',
               'return log["radius"].to_numpy()'),
          "tests/certification/test_run.py -k by_hand"),
    # Sequential tests
    Fault("futility that spends alpha", f"{PACKAGE}/sequential.py",
          swap("spent += alive.stop_at(u[-1])", "spent += 0.5 * alive.stop_at(u[-1])"),
          "tests/test_sequential.py"),
    Fault("every look at the whole alpha", f"{PACKAGE}/sequential.py",
          swap("return np.append(early, alpha)", "return np.full(count, alpha) * np.arange(1, "
               "count + 1)"),
          "tests/test_sequential.py -k error"),
    Fault("boundaries that may cross on a grid", f"{PACKAGE}/sequential.py",
          swap("success = np.maximum.accumulate(np.stack(single), axis=0)",
               "success = np.stack(single)"),
          "tests/test_sequential.py -k fine_grid"),
    Fault("anytime bound without its price", f"{PACKAGE}/sequential.py",
          swap("- special.betaln(0.5, 0.5) - np.log(special.betaincc(0.5, 0.5, p))\n", ""),
          "tests/test_sequential.py -k anytime"),
    # Theory
    Fault("likelihood ratio upside down", f"{PACKAGE}/theory.py",
          swap("ratio = np.where(flat_p > 0, flat_q / flat_p, np.inf)",
               "ratio = np.where(flat_p > 0, -flat_q / flat_p, np.inf)"),
          "tests/test_theory.py -k neyman"),
    Fault("cells of the right tail by subtraction from 1", f"{PACKAGE}/theory.py",
          swap("left, right = special.ndtr(z), special.ndtr(-z)",
               "left, right = special.ndtr(z), 1 - special.ndtr(z)"),
          "tests/test_theory.py -k tails"),
    # Files from others
    Fault("altered weights are loaded", f"{PACKAGE}/models.py",
          swap('if found != content["sha256"]:', 'if False:'),
          "tests/test_models.py -k altered"),
    Fault("a file is written in place", f"{PACKAGE}/_support/files.py",
          swap("    temporary.write_bytes(raw)\n    os.replace(temporary, path)",
               "    path.write_bytes(raw)"),
          "tests/support/test_files.py -k whole_or_not"),
    Fault("parts of a lost log enter a new one", f"{PACKAGE}/_support/ledger.py",
          swap("if not exists and (parts := self.parts()):", "if not exists and (parts := []):"),
          "tests/certification/test_run.py -k parts_without_their_log"),
    Fault("two logs share their settings", f"{PACKAGE}/_support/ledger.py",
          swap('if not word.isalpha() or word == "json":', "if not word:"),
          "tests/certification/test_run.py tests/robustness/test_log.py "
          "-k settings_would_overwrite"),
    Fault("attacked images are not told apart", f"{PACKAGE}/_support/ledger.py",
          swap("if k in found or not (exists and k in optional)}",
               "if not (exists and k in optional)}"),
          "tests/robustness/test_log.py -k other_images"),
    Fault("a training goes on under another schedule", f"{PACKAGE}/training/loop.py",
          swap("planned_rates(optimizer(model.parameters()), scheduler, total)", "{}"),
          "tests/training/test_loop.py -k other_settings_or_data"),
    Fault("label -100 is passed over", f"{PACKAGE}/_support/tensors.py",
          swap("if not 0 <= labels[0] <= labels[1] < count:",
               "if not labels[0] <= labels[1] < count:"),
          "tests/test_objectives.py -k no_classes"),
    Fault("a buffer that the network replaces is lost", f"{PACKAGE}/_support/calling.py",
          swap("                module._buffers.clear()\n"
               "                module._buffers.update(tensors)\n",
               "                pass\n"),
          "tests/support/test_calling.py -k unchanged"),
    Fault("two processes write one log", f"{PACKAGE}/_support/files.py",
          swap("        lock.acquire()\n", "        pass\n"),
          "tests/support/test_files.py -k two_processes"),
    Fault("a checkpoint is unpickled", f"{PACKAGE}/models.py",
          swap("from safetensors.torch import load as load_bytes", "from pickle import loads"),
          "tests/whole/test_security.py -k 'executes_what_it_reads and models'"),
    # Widgets and notebooks
    Fault("a widget callback that raises", f"{PACKAGE}/widgets.py",
          swap("        figure, self.says = self._draw(**values)\n",
               "        if self._drawn:\n            raise RuntimeError('broken')\n"
               "        figure, self.says = self._draw(**values)\n"),
          PROOF),
    Fault("an unknown magic in a notebook", PROOF, first_cell("%unknownmagic"),
          "tests/whole/test_notebooks.py -k 'imports_nothing_in_vain and 04'", fast=True),
    Fault("stored outputs stripped", PROOF, cells(strip),
          "tests/whole/test_notebooks.py -k 'clean_run and 04'"),
    Fault("figures without alt text", PROOF, cells(unnamed),
          "tests/whole/test_notebooks.py -k 'text_alternative and 04'"),
    Fault("a figure without alt text, shown", f"{PACKAGE}/figures/general.py",
          swap('metadata={kind: {"alt": ', 'metadata={kind: {"title": '),
          "tests/figures/test_figures.py -k show"),
    Fault("a notebook's own algorithm is wrong", PROOF,
          swap("np.argsort(q / p)", "np.argsort(-q / p)"),
          "tests/whole/test_notebooks.py -k neyman_pearson_cell"),
    # Networks of the reader's own
    Fault("a denoiser of another range is told our sigma", f"{PACKAGE}/models.py",
          swap("(high - low) * self.sigma)", "self.sigma)"),
          "tests/test_models.py -k another_range", fast=True),
    Fault("a denoiser learns from the labels", f"{PACKAGE}/objectives.py",
          swap("F.cross_entropy(logits_of(classifier, clean), answer)",
               "F.cross_entropy(logits_of(classifier, clean), y)"),
          "tests/test_noise_objectives.py -k denoising_for"),
    Fault("every image gets the largest noise", f"{PACKAGE}/objectives.py",
          swap("columns(sizes, x) * draw(x, torch.randn", "sigma * draw(x, torch.randn"),
          "tests/test_noise_objectives.py -k denoising_by_hand"),
    Fault("padding on the other side", f"{PACKAGE}/models.py",
          swap("(e // 2, e - e // 2)", "(e - e // 2, e // 2)"),
          "tests/test_models.py -k reference_architecture"),
    Fault("the answer of a group is its weakest class", f"{PACKAGE}/models.py",
          swap('logits, "amax")', 'logits, "amin")'), "tests/test_models.py -k answer_of_groups"),
    Fault("parts of a batch are joined in another order", f"{PACKAGE}/attacks/search.py",
          swap("torch.cat(list(parts))", "torch.cat(list(parts)[::-1])"),
          "tests/attacks/test_strong.py -k does_not_depend_on_the_batch"),
    Fault("a log takes a network of other attributes", f"{PACKAGE}/_support/calling.py",
          swap("[own, lost, dict(thing.named_children())]", "[lost]"),
          "tests/certification/test_run.py -k other_attributes"),
    Fault("two-class radii are audited as one-class ones", f"{PACKAGE}/certification/audit.py",
          swap('    if bound == "one_class":\n        exp', "    if True:\n        exp"),
          "tests/certification/test_audit.py -k two_class"),
    Fault("votes are written for the next class", f"{PACKAGE}/certification/log.py",
          swap("enumerate(counts) if votes)", "enumerate(counts, 1) if votes)"),
          "tests/certification/test_run.py -k many_classes"),
    Fault("the check of samples_needed takes any number", f"{PACKAGE}/checks/smoothing.py",
          swap("if abs(found - math.ceil(exact)) > 1e-9 * exact:", "if False:"),
          "tests/checks/test_checks.py -k samples_needed"),
    Fault("the check of the two bounds takes any second one", f"{PACKAGE}/checks/homework.py",
          swap("    agree(p_b, b, above, tolerance=1e-6)\n", ""),
          "tests/checks/test_checks.py -k shared_bounds"),
    Fault("the check of abstentions takes a probability near by", f"{PACKAGE}/checks/homework.py",
          swap('exactly")\n    agree(found, expected, faults, tolerance=1e-6)', 'exactly")'),
          "tests/checks/test_checks.py -k abstention"),
    Fault("the check of free training lets delta change in place", f"{PACKAGE}/checks/homework.py",
          swap('    untouched(delta, given, "delta")\n    if len(seen)', "    if len(seen)"),
          "tests/checks/test_checks.py -k free_step"),
    Fault("votes of all images are taken for those of each", f"{PACKAGE}/checks/homework.py",
          swap("zip(values, expected, strict=True):\n        counts_agree",
               "zip(values[:1], values[:1], strict=True):\n        counts_agree"),
          "tests/checks/test_checks.py -k sample_batch"),
    Fault("a mistake in one task costs points in the next", f"{PACKAGE}/checks/harness.py",
          swap("if case.wrong and lent:", "if False:"),
          "tests/checks/test_checks.py -k earlier_task"),
    # Homework
    Fault("a solution in the homework release", HOMEWORK,
          lambda text: text.replace("### BEGIN SOLUTION", "### the answer:"),
          "tests/checks/test_grading.py -k release_holds_no_solution"),
    Fault("lost labels are not looked for by function", f"{GRADING}/labels.py",
          swap("cells = [cell for cell in free if _defines(cell, _functions(wanted))]",
               "cells = []"),
          "tests/checks/test_labels.py -k all_labels_lost"),
    Fault("a written answer is guessed", f"{GRADING}/labels.py",
          swap("if free and guess:", "if free:"),
          "tests/checks/test_labels.py -k not_guessed"),
    Fault("what an answer uses is not run", f"{GRADING}/needed.py",
          swap("if not used & names", "if not set() & names"),
          "tests/checks/test_labels.py -k something_else_uses"),
    Fault("what a student added is not run", f"{GRADING}/needed.py",
          swap("if labels.squeezed(cell.source) in shown]", "if not labels.label(cell)]"),
          "tests/checks/test_labels.py -k student_changed"),
    Fault("a student's tag keeps a graded cell from running", f"{GRADING}/needed.py",
          swap("[t for t in tags if t != _SKIP]", "tags"),
          "tests/checks/test_labels.py -k no_tag"),
    Fault("the oldest version counts", f"{GRADING}/roster.py",
          swap("*older, newest = notebooks", "newest, *older = notebooks"),
          "tests/checks/test_roster.py -k newest_counts"),
    Fault("points by hand beyond the largest", f"{GRADING}/book.py",
          swap("if not 0 <= value <= most:", "if not 0 <= value:"),
          "tests/checks/test_grading.py -k damaged_table"),
    Fault("last year's seeds", f"{GRADING}/homework.py",
          swap("draw.randrange(1000, 1_000_000) for name", "found['seeds'][name] for name"),
          "tests/checks/test_numbers.py -k another_year"),
    Fault("seeds follow from the code alone", f"{GRADING}/homework.py",
          swap('{variant} {secret}"', '{variant}"'),
          "tests/checks/test_numbers.py -k secret"),
    Fault("points of a row that is not there are dropped", f"{GRADING}/grader.py",
          swap("if own and who not in rows]", "if own and who in []]"),
          "tests/checks/test_class.py -k are_refused"),
    Fault("the first cells take the time of the last", f"{GRADING}/contain.py",
          swap("max(1, min(most, left / 3))", "most"),
          "tests/checks/test_class.py -k last_tasks"),
    Fault("an answer that nobody has read has 0 points", f"{GRADING}/run.py",
          swap("for name in unread:", "for name in []:"),
          "tests/checks/test_class.py -k wrote_as_text"),
    Fault("phrases of the question count as copied", f"{GRADING}/similarity.py",
          swap("_phrases(text) - common for", "_phrases(text) for"),
          "tests/checks/test_similarity.py -k phrases"),
    Fault("memory of children does not count", f"{GRADING}/contain.py",
          swap("for one in family:\n            with", "for one in family[:1]:\n            with"),
          "tests/checks/test_contain.py -k many_processes"),
    Fault("the network stays open", f"{GRADING}/contain.py",
          swap("_TIED, *_own_world(), sys", "_TIED, sys"),
          "tests/checks/test_contain.py -k network"),
    Fault("points for an older text are not flagged", f"{GRADING}/book.py",
          swap("if one.read and one.read != digest_of(", "if False and one.read != digest_of("),
          "tests/checks/test_class.py -k older_text"),
    Fault("a rest is graded again after a kill", f"{GRADING}/grader.py",
          swap("if resume and row.key and", "if False and row.key and"),
          "tests/checks/test_class.py -k kill"),
]  # fmt: skip
