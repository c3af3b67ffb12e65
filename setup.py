"""Puts the style sheet, which the WebUI wants at the root, into the package too."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithStyleSheet(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("style.css", str(Path(self.build_lib, "lib_custom_diffusion", "ui", "style.css")))


setup(cmdclass={"build_py": WithStyleSheet})
