"""Print the next commands, on stderr. Never fail, as Cookiecutter would then remove the project."""

import os
import sys

# Cookiecutter copies this file into the folder for temporary files, and runs the copy. Without this
# statement, Python would first look for the modules below in that folder.
sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(__file__)]

import contextlib  # noqa: E402
import shlex  # noqa: E402

NEXT_STEPS = f"""
<< cookiecutter.project_slug >> (<< cookiecutter.task >>) is ready:

  cd {shlex.quote(os.getcwd())}
  make train                      # sets up .venv, then trains on data/
  make test                       # the project's own tests
  accelerate launch train.py      # the same training, in an environment of your own
"""

if sys.stderr is not None:
    # Do not use print: a stream that is not writable would raise again when Python exits.
    with contextlib.suppress(OSError):
        os.write(2, NEXT_STEPS.encode(sys.stderr.encoding, "backslashreplace"))
