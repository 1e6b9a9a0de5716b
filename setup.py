"""Puts the pretrained generator into a wheel, so that `pip install .` can design; an editable install has `data/`."""

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

STAGES = ("labels", "families", "gvae", "ccnf", "sequence")  # what `graphnas_lib.design` reads


class WithGenerator(build_py):
    """The package, and below `graphnas_lib/shipped/` the artifacts of `STAGES`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        source, target = Path("data", "lite"), Path(self.build_lib, "graphnas_lib", "shipped", "lite")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for manifest in (source / f"{stage}.manifest.json" for stage in STAGES):
            shutil.copy2(manifest, target)
            for name in json.loads(manifest.read_text(encoding="utf-8"))["files"]:
                shutil.copy2(source / name, target)


setup(cmdclass={"build_py": WithGenerator})
