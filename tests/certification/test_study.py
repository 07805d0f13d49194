"""The study: its commands, and its table from logs whose counts are known."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import typer
from scipy.stats import beta, norm
from typer.testing import CliRunner

from trustml_helpers import certification, cli, models
from trustml_helpers.certification import COLUMNS
from trustml_helpers.cli import plan
from trustml_helpers.cli import study as cli_study
from trustml_helpers.data import data_folder

ALPHA = 0.001


def write_log(path, sigma, n, votes, images=None):
    """A log of two-class settings: class 0 got so many votes, class 1 the rest."""
    rows = [
        [i, 0, 0, 0.0, 1, 0.1, k, n - k, *[0] * 8] for i, k in enumerate(np.resize(votes, images))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [*COLUMNS, *(f"count_{c}" for c in range(10))]
    pd.DataFrame(rows, columns=names).to_csv(path, sep="\t", index=False)
    about = {"sigma": sigma, "n": n, "alpha": ALPHA, "bound": "two_class"}
    path.with_suffix(".json").write_text(json.dumps(about))


def radius(k, n, sigma):
    return max(0.0, sigma * norm.ppf(beta.ppf(ALPHA, k, n - k + 1)))


def two_class_radius(k, n, sigma):
    """90 % of alpha for the top class, 10 % for the other one, which got all the rest."""
    low = beta.ppf(0.9 * ALPHA, k, n - k + 1)
    high = 1.0 if k == 0 else beta.ppf(1 - 0.1 * ALPHA, n - k + 1, k)
    return max(0.0, sigma / 2 * (norm.ppf(low) - norm.ppf(min(high, 1 - low))))


def test_table_from_known_counts(tmp_path):
    votes = [99_000, 70_000, 100_000, 40_000]
    write_log(tmp_path / "macer_0.5_n100000.tsv", 0.5, 100_000, votes, 500)
    write_log(tmp_path / "gaussian_0.5_n100000.tsv", 0.5, 100_000, [60_000], 500)
    write_log(tmp_path / "gaussian_0.5_seed1_n10000.tsv", 0.5, 10_000, [9_000], 500)
    write_log(tmp_path / "validation" / "macer_0.5.tsv", 0.5, 1000, [900], 5)
    write_log(tmp_path / "validation" / "gaussian_0.5.tsv", 0.5, 1000, [800], 5)
    table = certification.summarise(tmp_path).set_index(["method", "n"])
    row = table.loc["macer", 100_000]
    each = [radius(k, 100_000, 0.5) for k in votes]
    assert row.acr == pytest.approx(np.mean(each), abs=2e-6)
    # The first three certify class 0; the last, with 40 % of the votes, abstains.
    assert row.abstained == 0.25
    assert row["r=1"] == 0.5
    assert row.se == pytest.approx(np.resize(each, 500).std(ddof=1) / np.sqrt(500), abs=2e-6)
    two = [two_class_radius(k, 100_000, 0.5) for k in votes]
    assert row.acr_two == pytest.approx(np.mean(two), abs=2e-6)
    assert row.published == 1.5712  # the authors' figure for every 20th image
    assert row.acr_validation == pytest.approx(radius(900, 1000, 0.5), abs=2e-6)
    assert row.best
    assert not table.loc["gaussian", 100_000].best
    other = table.loc["gaussian", 10_000]
    assert other.published == 1.537
    assert other.predicted == pytest.approx(radius(90_000, 100_000, 0.5), abs=0.003)
    assert np.isnan(row.predicted)
    assert other.seed == 1


def test_all_ten_thousand_images_stand_beside_the_figure_for_all(tmp_path):
    write_log(tmp_path / "gaussian_1.0_n100000.tsv", 1.0, 100_000, [99_000], 10_000)
    assert certification.summarise(tmp_path).published.tolist() == [1.6184]


def test_an_empty_folder_and_a_stranger_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no logs METHOD_SIGMA_nN"):
        certification.summarise(tmp_path)
    write_log(tmp_path / "nonsense_1.0_n10000.tsv", 1.0, 10_000, [9_000], 3)
    with pytest.raises(ValueError, match=r"nonsense_1\.0: expected METHOD_SIGMA"):
        certification.summarise(tmp_path)


def test_mismatch_has_training_in_rows(tmp_path):
    """Each log by the sigma of its JSON: 900 of 1,000 votes at 1 reach 1.1, at 0.5 the half."""
    for trained, used, k in ((1.0, 0.5, 900), (0.5, 0.5, 990), (0.5, 1.0, 600), (1.0, 1.0, 900)):
        write_log(tmp_path / "mismatch" / f"{trained}_at_{used}.tsv", used, 1000, [k, 400], 4)
    table = certification.mismatch(tmp_path, 0.6)
    assert radius(900, 1000, 0.5) < 0.6 < min(radius(990, 1000, 0.5), radius(900, 1000, 1.0))
    assert table.index.tolist() == table.columns.tolist() == [0.5, 1.0]
    assert table.loc[0.5].tolist() == [0.5, 0.0]
    assert table.loc[1.0].tolist() == [0.0, 0.5]


def test_curves_by_sigma_and_method(tmp_path):
    """One log per panel and line: not that of another n, another seed, a longer name."""
    write_log(tmp_path / "smoothadv_0.5_n1000.tsv", 0.5, 1000, [990, 600], 4)
    write_log(tmp_path / "smoothadv_consistency_0.5_n1000.tsv", 0.5, 1000, [1000], 4)
    write_log(tmp_path / "gaussian_1.0_n1000.tsv", 1.0, 1000, [700], 4)
    write_log(tmp_path / "gaussian_1.0_seed1_n1000.tsv", 1.0, 1000, [1000], 4)
    write_log(tmp_path / "gaussian_0.5_n10000.tsv", 0.5, 10_000, [5_500], 4)
    ends = [radius(k, 1000, 0.5) - 2e-6 for k in (600, 990, 1000)]
    found = certification.study_curves(tmp_path, [*ends, ends[2] + 1e-5], n=1000)
    assert found == {
        0.5: {"SmoothAdv": [1.0, 0.5, 0.0, 0.0], "SmoothAdv + Consistency": [1.0, 1.0, 1.0, 0.0]},
        1.0: {"Gaussian": [1.0, 0.0, 0.0, 0.0]},
    }
    assert radius(700, 1000, 1.0) < ends[1]
    assert list(found) == [0.5, 1.0]


def test_the_pictures_show_the_curves_and_the_mismatch(tmp_path):
    write_log(tmp_path / "macer_0.25_n1000.tsv", 0.25, 1000, [990], 4)
    write_log(tmp_path / "gaussian_1.0_n1000.tsv", 1.0, 1000, [990], 4)
    assert list(certification.draw_study(tmp_path)) == ["curves_n1000"]
    write_log(tmp_path / "gaussian_1.0_n20.tsv", 1.0, 20, [20], 4)
    write_log(tmp_path / "mismatch" / "0.5_at_1.0.tsv", 1.0, 1000, [990], 4)
    drawn = certification.draw_study(tmp_path)
    assert sorted(drawn) == ["curves_n1000", "curves_n20", "mismatch"]
    left, right = drawn["curves_n1000"].axes
    assert (left.get_title(), right.get_title()) == (
        r"$\sigma=0.25$, n = 1,000", r"$\sigma=1$, n = 1,000"
    )  # fmt: skip
    for axes, sigma in ((left, 0.25), (right, 1.0)):
        (line,) = axes.lines
        x, y = line.get_data()
        assert x[-1] == pytest.approx(4 * sigma)
        assert np.array_equal(y, np.asarray(x) <= radius(990, 1000, sigma))
    assert [text.get_text() for text in drawn["mismatch"].axes[0].texts] == ["100.0"]
    for figure in drawn.values():
        plt.close(figure)


def test_steps_train_what_does_not_ship_and_choose_on_validation_images():
    found = plan.steps(Path("out"), methods=["gaussian", "macer"], sigmas=[0.5], execution=["--x"])
    assert [step.words[0] for step in found] == [*["certify"] * 3, "train", "certify", "certify"]
    assert found[0].words[1] == "mnist_lenet_gaussian_0.5"
    assert ["validation" in step.words for step in found] == [True, *[False] * 3, True, False]
    assert found[4].words[1] == str(found[3].output)
    both = plan.steps(Path("out"), methods=["gaussian"], sigmas=[0.5, 1.0])
    mixed = [step.words for step in both if step.output.name == "1.0_at_0.5.tsv"]
    assert mixed[0][1] == "mnist_lenet_gaussian_1.0"
    assert mixed[0][mixed[0].index("--sigma") + 1] == "0.5"
    assert all("--x" in step.words for step in found if step.words[0] == "certify")
    again = plan.steps(Path("out"), methods=["macer"], sigmas=[0.5], seed=1, prefix="")
    assert [step.words[0] for step in again] == ["train", "certify"]
    assert again[0].words[2:4] == ["--recipe", "macer"]
    assert again[1].output == Path("out/macer_0.5_seed1_n10000.tsv")
    with pytest.raises(ValueError, match="n=5: even 5 equal votes certify nothing"):
        plan.steps(Path("out"), methods=["macer"], n=5)
    night = plan.steps(Path("out"), methods=["night"], sigmas=[2.0])
    assert night[0].words[:4] == ["train", "mnist_lenet_night_2.0", "--recipe",
                                  "night_smoothadv_consistency"]  # fmt: skip
    assert night[2].output == Path("out/night_2.0_n10000.tsv")
    other = plan.steps(Path("out"), methods=["night_cat_rs"], sigmas=[2.0])
    assert other[0].words[1:4] == ["mnist_lenet_night_cat_rs_2.0", "--recipe", "night_cat_rs"]
    with pytest.raises(ValueError, match="no recipe easy; there are recipes for gaussian, stabil"):
        plan.steps(Path("out"), methods=["easy"], prefix="")


def test_a_study_trains_by_the_command_of_each_card(monkeypatch):
    """Settings that are not given are the defaults, those of the recipe among them."""
    cards = data_folder() / "results" / "mnist_study" / "cards"
    found = {path.stem: json.loads(path.read_text()) for path in cards.glob("mnist_lenet_*.json")}
    for name in models.available():
        if name.startswith(("mnist_lenet_night", "mnist_lenet_smoothadv")):
            found[name] = models.card(name)
    monkeypatch.setattr(plan.models, "available", list)  # so that all are trained
    options = {"--bits": "16", "--seed": "0", "--sigma": "0.5"}
    train = typer.main.get_command(cli.app).commands["train"]
    assert {p.opts[0]: str(p.default) for p in train.params if p.opts[0] in options} == {
        "--bits": "16", "--seed": "0", "--sigma": "None"}  # fmt: skip
    methods = [method for method in certification.METHOD_NAMES if method != "gaussian"]
    made = {
        step.words[1]: dict(zip(step.words[2::2], step.words[3::2], strict=True))
        for seed in (0, 1, 2)
        for step in plan.steps(Path("out"), methods=methods, seed=seed)
        if step.words[0] == "train"
    }
    assert len(found) > 25
    for name, card in found.items():
        words = card["command"].split()
        assert words[:3] == ["trustml", "train", name]
        given = dict(zip(words[3::2], words[4::2], strict=True))
        assert options | given == {k: v for k, v in made[name].items() if k != "--out"}, name


@pytest.fixture
def runs(monkeypatch):
    """Replace the processes of a study: each leaves what its command would."""
    ran, codes = [], {}

    def run(words):
        assert words[1:3] == ["-m", "trustml_helpers"]
        ran.append(words[3:])
        if words[3] == "train":
            (Path(words[words.index("--out") + 1]) / f"{words[4]}.safetensors").touch()
        elif codes.get(words[3], 0) == 0:
            write_log(Path(words[5]), 0.5, int(words[words.index("--n") + 1]), [900], 3)
        return SimpleNamespace(returncode=codes.get(words[3], 0))

    monkeypatch.setattr(cli_study, "subprocess", SimpleNamespace(run=run))
    return ran, codes


def test_a_study_runs_its_commands_and_writes_the_table(runs, tmp_path):
    ran, _ = runs
    words = f"study mnist --method stability --sigma 0.5 --n 1000 --out {tmp_path}".split()
    found = CliRunner().invoke(cli.app, words)
    assert found.exit_code == 0, found.output
    assert [each[0] for each in ran] == ["train", "certify", "certify"]
    assert found.output.count("$ trustml ") == 3
    table = pd.read_csv(tmp_path / "summary.csv")
    assert table["method"].tolist() == ["stability"]
    assert (tmp_path / "curves_n1000.png").read_bytes()[1:4] == b"PNG"
    CliRunner().invoke(cli.app, words)
    assert [each[0] for each in ran[3:]] == ["certify", "certify"]  # 3 rows are not all


@pytest.mark.slow
def test_complete_logs_need_no_network(runs, tmp_path):
    ran, _ = runs
    log, held = tmp_path / "macer_0.5_n1000.tsv", tmp_path / "validation" / "macer_0.5.tsv"
    write_log(log, 0.5, 1000, [900], 500)
    write_log(held, 0.5, 10_000, [900], 250)
    words = f"study mnist --method macer --sigma 0.5 --n 1000 --out {tmp_path}".split()
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert ran == []
    assert (tmp_path / "summary.csv").exists()
    write_log(held, 0.5, 10_000, [900], 249)
    CliRunner().invoke(cli.app, words)
    assert [each[0] for each in ran] == ["train", "certify"]


def test_a_study_stops_where_a_command_fails(runs, tmp_path):
    ran, codes = runs
    codes["certify"] = 2
    found = CliRunner().invoke(cli.app, f"study mnist --method macer --out {tmp_path}".split())
    assert found.exit_code == 2
    assert len(ran) == 2
    assert not (tmp_path / "summary.csv").exists()


def test_a_dry_run_runs_nothing(runs, tmp_path):
    found = CliRunner().invoke(cli.app, f"study mnist --dry-run --out {tmp_path}".split())
    assert found.exit_code == 0
    assert runs[0] == []
    # 8 methods, 3 sigmas, 2 sets; and 3 networks at 3 sigmas
    assert found.output.count("$ trustml certify") == 48 + 9
    assert list(tmp_path.iterdir()) == []


def test_the_printed_commands_are_commands(tmp_path):
    """Every word is known to the command that it goes to; nothing is run."""
    commands = typer.main.get_command(cli.app).commands
    for step in plan.steps(tmp_path, methods=["macer"], sigmas=[0.5], execution=["--compile"]):
        name, *rest = step.words
        context = commands[name].make_context(name, rest)
        assert context.params["seed"] == 0


def test_the_published_rows_give_the_published_summary():
    folder = data_folder() / "published"
    rows = pd.read_csv(folder / "cohen2019_logs.csv.gz")
    told = pd.read_csv(folder / "cohen2019_summary.csv")
    assert ((rows.predict == rows.label) == (rows.correct == 1)).all()
    keys = ["dataset", "train_sigma", "sigma"]
    logs = dict(list(rows.groupby(keys)))
    assert len(logs) == 12
    for row in told.itertuples():
        log = logs[row.dataset, row.train_sigma, row.sigma]
        acr, _ = certification.average_certified_radius(log)
        assert len(log) == row.images
        assert acr == pytest.approx(row.acr, abs=5.1e-5)
        assert (log.predict == -1).mean() == pytest.approx(row.abstained, abs=5.1e-4)


def test_a_published_curve_falls_off_a_cliff_and_not_down_a_line():
    """ImageNet at sigma 0.25: what straight lines between the printed radii would not show."""
    rows = pd.read_csv(data_folder() / "published" / "cohen2019_logs.csv.gz")
    rows = rows[(rows.dataset == "ImageNet") & (rows.train_sigma == rows.sigma)]
    curve = {s: certification.certified_accuracy(log, [0.5, 0.75, 0.9, 0.978, 1.0])
             for s, log in rows.groupby("sigma")}  # fmt: skip
    assert curve[0.25] == pytest.approx([0.494, 0.375, 0.316, 0.267, 0.0], abs=5.1e-4)
    assert curve[0.25][1] > curve[1.0][1]  # a line would be below from 0.63 on


def test_the_tables_of_the_study_hold_what_its_logs_say():
    """Every table of the README comes from the logs, the cards and the published figures."""
    home = data_folder() / "results" / "mnist_study"
    script = runpy.run_path(str(home / "tables.py"))
    text = (home / "README.md").read_text(encoding="utf-8")
    made = script["tables"]()
    assert text.count("<!-- table: ") == len(made) > 5
    assert all(table.count("\n") >= 2 for table in made.values())
    for name, table in made.items():
        assert f"<!-- table: {name} -->\n\n{table}\n\n<!-- end -->" in text, name


def test_the_published_radii_image_by_image_give_the_published_averages():
    theirs = pd.read_csv(data_folder() / "published" / "mnist_every_20th.csv.gz")
    assert theirs.groupby(["method", "sigma"]).idx.agg(list).map(set).map(
        set(range(0, 10_000, 20)).__eq__
    ).all()  # fmt: skip
    table = pd.read_csv(data_folder() / "published" / "mnist_acr.csv").dropna()
    expected = table.set_index(["method", "sigma"]).acr_every_20th
    found = theirs.groupby(["method", "sigma"]).radius.mean()
    assert len(found) == len(expected) == 21
    assert (found - expected).abs().max() < 1e-4
