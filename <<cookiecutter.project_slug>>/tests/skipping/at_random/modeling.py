import torch

from skipping.modeling import Model as Undeclared


class Model(Undeclared):
    def uses_body(self) -> bool:
        return not self.training or bool(torch.rand(()) < 0.5)
