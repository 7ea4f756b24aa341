from failing.labels import IN_FORWARD
from least_contract.modeling import Model as Working


class Model(Working):
    def forward(self, inputs, labels=None):
        if labels is not None and bool((labels == IN_FORWARD).any()):
            raise IndexError("Target 200 is out of bounds.")
        return super().forward(inputs, labels)
