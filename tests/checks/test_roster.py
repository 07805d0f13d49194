"""Who handed in what: names as learning platforms write them, and the roster of a class."""

from __future__ import annotations

import os

import pytest

from trustml_helpers.checks.grading import roster
from trustml_helpers.checks.grading.homework import HomeworkError

CLASS = """id,name,e-mail
101,Ada Lovelace,ada@example.org
102,"Gauß, Carl Friedrich",cfg@example.org
103,Émilie du Châtelet,emilie@example.org
104,Emmy Noether,noether@example.org
105,"Leo Ma",leo.ma@example.org
"""


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "class.csv"
    path.write_text(CLASS, encoding="utf-8-sig")
    return roster.read_roster(path)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "submissions"
    made.mkdir()
    return made


def put(folder, *names):
    """Empty files; each is a minute younger than the one before."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (1e9 + 60 * number, 1e9 + 60 * number))


def rows(found):
    return {one.student: one for one in found}


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("101.ipynb", "101"), ("ada@example.org.ipynb", "101"), ("ada.ipynb", "101"),
        ("Ada Lovelace.ipynb", "101"), ("LOVELACE, Ada.ipynb", "101"),
        ("lovelaceada_101_5550_hw1.ipynb", "101"), ("lovelaceada_LATE_9_5550_hw1.ipynb", "101"),
        ("carlfriedrichgauß_9_5550_hw1.ipynb", "102"), ("Carl Friedrich Gauss.ipynb", "102"),
        ("Émilie du Châtelet_77_assignsubmission_file_/hw1.ipynb", "103"),
        ("Emilie du Chatelet_77_assignsubmission_file/hw1.ipynb", "103"),
        ("Du Châtelet, Émilie_77_assignsubmission_file_hw1.ipynb", "103"),
        ("Emmy Noether/my work/hw1.IPYNB", "104"), ("leo.ma.ipynb", "105"),
    ],
)  # fmt: skip
def test_names_of_platforms_find_their_person(people, folder, name, who):
    put(folder, name)
    found = rows(roster.collect(folder, people))
    assert found[who].path == folder / name
    assert found[who].person.id == who
    assert {one.status for student, one in found.items() if student != who} == {"missing"}
    assert len(found) == 5


def test_nobody_and_two_of_one_name_get_rows_of_their_own(folder, tmp_path):
    path = tmp_path / "class.csv"
    path.write_text("id,name\n1,Wei Wang\n2,Wang Wei\n3,Li Na\n")
    put(folder, "Wei Wang.ipynb", "stranger.ipynb", "3.ipynb")
    found = rows(roster.collect(folder, roster.read_roster(path)))
    assert set(found) == {"1", "2", "3", "Wei Wang", "stranger"}
    assert "more than one in the roster fits 'Wei Wang'" in found["Wei Wang"].notes[0]
    assert "nobody in the roster fits 'stranger'" in found["stranger"].notes[0]
    assert found["stranger"].path is not None
    assert found["1"].status == found["2"].status == "missing"


def test_of_several_versions_the_newest_counts_and_the_others_are_listed(people, folder):
    canvas = [f"lovelaceada_101_{n}_hw1{again}.ipynb" for n, again in
              ((7, "-2"), (9, "-10"), (8, "-9"))]  # fmt: skip
    put(folder, *canvas, "noether/hw1.ipynb", "noether/later.ipynb", "104.ipynb")
    found = rows(roster.collect(folder, people))
    assert found["101"].path.name == canvas[1]  # by number, though another file is younger
    old = [one for one in found.values() if one.of == "101"]
    assert {one.path.name for one in old} == {canvas[0], canvas[2]}
    assert all(one.status == f"superseded by {canvas[1]}" for one in old)
    assert found["104"].path.name == "104.ipynb"
    assert found["104"].notes == ("newest of 3: 104.ipynb",)


def test_what_is_no_notebook_has_a_row(folder):
    put(folder, "ada/answer.pdf", "ada/code.zip", "blaise/hw1.ipynb", "carl/hw1.py",
        "dora/.ipynb_checkpoints/hw1.ipynb", "__MACOSX/x/hw1.ipynb", ".hidden.ipynb")  # fmt: skip
    found = rows(roster.collect(folder))
    assert set(found) == {"ada", "blaise", "carl"}
    assert found["ada"].status == "no notebook, only answer.pdf, code.zip"
    assert found["blaise"].status == ""


def test_any_name_is_taken_and_equal_ones_are_told_apart(folder):
    put(folder, "Müller, Ute (2).ipynb", "a+b.ipynb", "wei_1_2_hw1.ipynb", "wei_3_4_hw1.ipynb",
        "late/x_LATE_1_2_hw1.ipynb", "NA.ipynb")  # fmt: skip
    found = rows(roster.collect(folder))
    assert set(found) == {"Müller, Ute (2)", "a+b", "wei", "wei (2)", "late", "NA"}
    assert found["late"].notes == ("late",)
    assert found["wei"].canvas == "1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nAda\n", "expected the columns id, name, email, found name"),
        ("id,name\n1,Ada\n1,Emmy\n", "id '1' is empty or there twice"),
        ("id,name\n,Ada\n", "is empty or there twice"),
        ("", "no CSV in UTF-8"),
    ],
)  # fmt: skip
def test_a_damaged_roster_is_refused(tmp_path, text, message):
    path = tmp_path / "class.csv"
    path.write_text(text)
    with pytest.raises(HomeworkError, match=message):
        roster.read_roster(path)
    with pytest.raises(HomeworkError, match="no such file"):
        roster.read_roster(tmp_path / "gone.csv")
    path.write_bytes("id,name\n1,Müller\n".encode("latin-1"))
    with pytest.raises(HomeworkError, match="UTF-8"):
        roster.read_roster(path)


def test_nothing_to_grade_is_said(folder):
    with pytest.raises(HomeworkError, match=r"Expected NAME\.ipynb"):
        roster.collect(folder)
    with pytest.raises(HomeworkError, match="no such folder"):
        roster.collect(folder / "gone")
