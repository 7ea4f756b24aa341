"""Find single files of a checkpoint, which is a folder or a repository of the Hub."""

from typing import Any

from transformers.utils import cached_file

from model.revision import split_revision


def find_file(model_id: str, name: str, **options: Any) -> str | None:
    """Return the path of a file in a folder, or in the local cache of the Hub.

    The file is downloaded if it is not in the cache. Return None if there is no such file, if the
    Hub cannot be reached, or if `model_id` is not a valid Hub id. The errors are not raised here,
    because loading the model raises them.

    Args:
        options: Further arguments of `transformers.utils.cached_file`.
    """
    repository, hub = split_revision(model_id)
    try:
        return cached_file(
            repository,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
            **options,
        )
    except OSError:
        return None
