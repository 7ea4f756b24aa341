"""Print the lower bounds of a project's dependencies as constraints for pip.

python scripts/lowest.py PROJECT > lowest.txt
make -C PROJECT test-all CONSTRAINTS=$PWD/lowest.txt
"""

import argparse
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOUND = re.compile(r"([\w.-]+)>=([\w.]+)(;.*)?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("project", type=Path)
    text = (parser.parse_args().project / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    for dependency in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        bound = BOUND.fullmatch(dependency)
        if not bound:
            parser.error(f"{dependency} has no lower bound; expected name>=version")
        print("{}=={}{}".format(bound[1], bound[2], bound[3] or ""))


if __name__ == "__main__":
    main()
