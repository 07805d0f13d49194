"""What pyproject.toml cannot say: installed from the source distribution, the course comes along.

A wheel that is made from the repository holds the package alone, for those who have their own data.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FROM_THE_SOURCE_DISTRIBUTION = Path("PKG-INFO").exists()  # the repository has none


class WithTheCourse(build_py):
    def run(self) -> None:
        super().run()
        if FROM_THE_SOURCE_DISTRIBUTION and not self.editable_mode:
            for part in ("data", "notebooks"):
                to = Path(self.build_lib, "trustml_helpers", "course", part)
                shutil.copytree(part, to, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithTheCourse})
