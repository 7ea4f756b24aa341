"""Replace the modules of model/ by other files, in a `with` block or a process."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import model

TESTS = Path(__file__).parent.parent
# Not replaced: the folders do not contain this module, and modules outside model/ import it.
KEPT = "model.interface"


@contextmanager
def files_of_model_in(*folders: str, also_own: bool = False) -> Iterator[None]:
    """Import the modules of the package `model` from folders of tests/.

    Args:
        also_own: Whether modules that the folders lack are imported from the project's model/.
    """
    own = list(model.__path__)
    before = _forget_modules()
    model.__path__[:] = [str(TESTS / folder) for folder in folders] + (own if also_own else [])
    importlib.invalidate_caches()
    try:
        yield
    finally:
        model.__path__[:] = own
        _forget_modules()
        sys.modules.update(before)
        for name, module in before.items():
            setattr(model, name.rpartition(".")[2], module)


def _forget_modules() -> dict:
    names = [name for name in sys.modules if name.startswith("model.") and name != KEPT]
    return {name: sys.modules.pop(name) for name in names}
