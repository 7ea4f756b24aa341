from failing.labels import IN_COMPUTE, IN_UPDATE


class Scores:
    def __init__(self, model, tokenizer, device):
        self.reset()

    @staticmethod
    def directions(schema):
        return {"largest": True}

    def reset(self):
        self.labels = []

    def update(self, outputs, batch):
        self.labels += batch["labels"].tolist()
        if IN_UPDATE in self.labels:
            raise ValueError("a label of 300")

    def compute(self, loss):
        if IN_COMPUTE in self.labels:
            raise ZeroDivisionError
        return {"largest": 1.0}

    def save(self, folder):
        pass
