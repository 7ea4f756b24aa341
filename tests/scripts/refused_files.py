"""Read files with the task token_classification; print one line with the error for each file.

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
