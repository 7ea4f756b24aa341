"""Print the first fault of best/ and of last/; None for an intact checkpoint.

python find_faults.py OUTDIR
"""

import sys
from pathlib import Path

from training.atomic import find_fault

print(*(find_fault(Path(sys.argv[1], name)) for name in ("best", "last")))
