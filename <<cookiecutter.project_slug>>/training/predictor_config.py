"""`predictor_config.json`: settings of predict.py, saved with each checkpoint.

Unlike `training_state.json`, this file is also part of an uploaded `best/` and of an export.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import RunError

from .hub_files import find_file
from .state import STATE_FILE, SavedRun, to_json

PREDICTOR_FILE = "predictor_config.json"


@dataclass(frozen=True)
class PredictorConfig:
    """Settings of `Predictor`.

    Attributes:
        max_len: `--max_len` of the training run.
        schema: Settings with which the training data were read: see `TaskDataset`.
        options: Arguments of `Predictor` that the latest validation chose: see `Scorer`.
    """

    max_len: int
    schema: dict[str, Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, saved: SavedRun) -> "PredictorConfig":
        """Return the settings in the saved state of a run."""
        return cls(saved.args["max_len"], saved.schema, saved.state.predict_options)

    @classmethod
    def read(cls, checkpoint: str) -> "PredictorConfig | None":
        """Read the settings of a checkpoint; return None if none are found.

        Args:
            checkpoint: A folder or a Hub id. Checkpoints of earlier versions contain the settings
                only in `training_state.json`.

        Raises:
            RunError: The file with the settings cannot be read or is invalid.
        """
        path = find_file(checkpoint, PREDICTOR_FILE)
        if path is None:
            folder = Path(checkpoint)
            return cls.of(SavedRun.read(folder)) if (folder / STATE_FILE).is_file() else None
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(int(content["max_len"]), dict(content["schema"]), dict(content["options"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: not the settings of predict.py ({error})") from None

    def to_text(self) -> str:
        return to_json(asdict(self), indent=2)
