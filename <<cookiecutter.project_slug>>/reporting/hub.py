"""Upload a checkpoint to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from errors import RunError

# They hold paths of this machine.
LOCAL = ["training_state.json", "manifest.json"]


def push(folder: Path, repository: str) -> None:
    """Upload a checkpoint; a public repository is created if there is none.

    Raises:
        RunError: The Hub cannot be reached or rejects the upload. No local file is changed.
    """
    api = HfApi()
    try:
        repository = api.create_repo(repository, exist_ok=True).repo_id
        api.upload_folder(
            folder_path=folder.resolve(),
            repo_id=repository,
            ignore_patterns=LOCAL,
            commit_message="Upload the best checkpoint",
        )
    except Exception as error:  # errors of many types: of the network, the client, the Hub
        raise RunError(
            f"--push_to_hub {repository}: not uploaded ({_reason(error)}); see {folder}"
        ) from None


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
