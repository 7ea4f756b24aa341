"""The configuration of a student: its base model, and its teacher."""

from transformers import AutoConfig

from .base import WrapperConfig

BASE_MODEL = "tiny"
OPTIONS: dict[str, dict] = {
    "teacher_id": {"default": "teacher", "help": "trained classifier: Hub id or folder"},
    "softness": {"type": float, "default": 2.0, "help": "temperature of teacher and student"},
}


class ModelConfig(WrapperConfig):
    """The configuration of a student.

    Args:
        base_model_id: Initial model of the student: see `WrapperConfig`.
        teacher_id: Hub id or folder of the teacher. A new student gets the teacher's labels.
        softness: Temperature of the output distributions of teacher and student. The name is not
            `temperature`, because transformers treats that name as a generation setting.
    """

    model_type = "student"
    pipeline_tag = "text-classification"
    default_base_model = BASE_MODEL

    def __init__(
        self,
        base_model_id: str | None = None,
        teacher_id: str = "teacher",
        softness: float = 2.0,
        **kwargs,
    ):
        super().__init__(base_model_id, **kwargs)
        self.teacher_id = teacher_id
        self.softness = softness
        if "base_config" not in kwargs:
            teacher = AutoConfig.from_pretrained(teacher_id, trust_remote_code=False)
            self.base_config.id2label = self.id2label = teacher.id2label
            self.base_config.label2id = self.label2id = teacher.label2id
