"""Upload a checkpoint to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from errors import RunError


def push(folder: Path, repository: str) -> None:
    """Upload a checkpoint; the repository is made, as a public one, if there is none.

    Raises:
        RunError: the Hub cannot be reached or does not take it; nothing local has changed.
    """
    api = HfApi()
    try:
        repository = api.create_repo(repository, exist_ok=True).repo_id
        api.upload_folder(
            folder_path=folder.resolve(),
            repo_id=repository,
            ignore_patterns=["training_state.json", "manifest.json"],
            commit_message="Upload the best checkpoint",
        )
    except Exception as error:  # of many kinds: of the network, of its client, of the Hub
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"--push_to_hub {repository}: not uploaded ({reason}); see {folder}"
        ) from None
