from failing.labels import IN_LOADING
from least_contract.dataset import Dataset as Working, generate_dataset as generate_working


class Dataset(Working):
    def __getitem__(self, index):
        example = super().__getitem__(index)
        if example["labels"] == IN_LOADING:
            raise KeyError("column")
        return example


def generate_dataset(path):
    dataset = generate_working(path)
    dataset.__class__ = Dataset
    # Without a fingerprint, the run would hash examples, and fail, before the first step.
    dataset.fingerprint = 1
    return dataset
