"""Print one line per file that `chat` reads: the error, or the number of examples.

python chat_rows.py JSON_OPTIONS FILE ...
"""

import json
import sys

from errors import DataError
from model.dataset import generate_dataset

options = json.loads(sys.argv[1])
for path in sys.argv[2:]:
    try:
        print(len(generate_dataset(path, **options)))
    except DataError as error:
        print(error)
