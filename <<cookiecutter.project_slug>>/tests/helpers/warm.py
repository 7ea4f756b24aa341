"""Fill caches that each run in a process forked from the server would otherwise fill again."""

import io

from matplotlib.figure import Figure
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from reading import identity, tables

get_checkpoint_conversion_mapping("bert")  # compiles a thousand regular expressions
identity.hash_source(tables.__file__, "reading")  # parses the code of reading/
Figure().savefig(io.BytesIO())  # reads the fonts
