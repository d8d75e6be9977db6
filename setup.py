"""What pyproject.toml cannot say: the C kernels are compiled where there is a compiler.

Without one the package installs all the same, and the engine computes with torch.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

FOLDER = Path("node/compute/native")
PACKAGE = "potluck.node.compute.native"

specification = importlib.util.spec_from_file_location("native_build", FOLDER / "build.py")
assert specification is not None and specification.loader is not None
native = importlib.util.module_from_spec(specification)
specification.loader.exec_module(native)


class BuildNative(build_ext):
    """A plain shared library, not a module of Python's: no suffix, no headers."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, extension: Extension) -> None:
        try:
            native.build(Path(self.get_ext_fullpath(extension.name)).absolute())
        except native.BuildError as error:
            print(f"potluck: no compiled kernels, torch's are used: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def copy_extensions_to_source(self) -> None:
        """An editable install loads the library from the checkout."""
        for extension in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(extension.name)
            if built.exists():
                self.copy_file(str(built), str(FOLDER / built.name))


class BuildPython(build_py):
    """The root is the package, and this file stands at the root: it is not shipped."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if Path(entry[2]).name != Path(__file__).name]


class AnyPythonsWheel(bdist_wheel):
    """The library knows nothing of Python: one wheel of a platform serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"{PACKAGE}._native",
            sources=sorted(str(path) for path in FOLDER.glob("*.c")),
            depends=sorted(str(path) for p in ("*.h", "*.inc") for path in FOLDER.glob(p)),
            optional=True,
        )
    ],
    cmdclass={
        "bdist_wheel": AnyPythonsWheel,
        "build_ext": BuildNative,
        "build_py": BuildPython,
    },
)
