"""Print the errors of `token_classification` for files, one line for each.

python refused_files.py FILE ...
"""

import sys

from errors import DataError
from model.dataset import generate_dataset

for path in sys.argv[1:]:
    try:
        generate_dataset(path)
        print("no error")
    except DataError as error:
        print(error)
