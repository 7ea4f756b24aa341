"""Read files with the task chat; print for each file the number of examples, or the error.

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
