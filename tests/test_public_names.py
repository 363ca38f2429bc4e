"""The names scripts call."""

from pathlib import Path

import qlab

PACKAGE = Path(qlab.__file__).parent


def test_no_module_stands_in_the_place_of_a_public_name():
    """`import qlab.x` binds the module to the name x of the package, and a function of that name would be gone."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert not modules & set(qlab.__all__)


def test_every_public_name_is_there():
    assert [name for name in qlab.__all__ if getattr(qlab, name, None) is None] == []
