"""The homework from source to grades, offline: nbgrader does the work, one submission at a time.

``homework``: the source and the numbers of a year. ``release``: the version for students and what
they check. ``roster``: who handed in what. ``labels``: which cell is which. ``contain``: limits.
``run``: one submission. ``grader``: a class. ``book``: tables. ``pages``, ``similarity``: what to
look at.
"""

from trustml_helpers.checks.grading.grader import enter_points, grade, relabel, scoreboard
from trustml_helpers.checks.grading.homework import HomeworkError, write_numbers
from trustml_helpers.checks.grading.release import check_before, release

__all__ = [
    "HomeworkError", "check_before", "enter_points", "grade", "relabel", "release", "scoreboard",
    "write_numbers",
]  # fmt: skip
