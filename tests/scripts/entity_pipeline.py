"""Compare the entities that `pipeline` and `Predictor` find in the sample data.

python entity_pipeline.py CHECKPOINT AGGREGATION_STRATEGY
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, pipeline

from model.modeling import Model
from model.prediction import Predictor

path, strategy = sys.argv[1:]
lines = Path("data/valid.jsonl").read_text(encoding="utf-8").splitlines()
texts = [json.loads(line)["text"] for line in lines[:40]]
find = pipeline("token-classification", model=path, aggregation_strategy=strategy)
predictor = Predictor(
    Model.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path), 128, {}
)
count = 0
for text, row in zip(texts, predictor(texts), strict=True):
    expected = find(text)
    found = [(entity["label"], entity["text"]) for entity in row["prediction"]]
    assert found == [(e["entity_group"], text[e["start"] : e["end"]].strip()) for e in expected]
    for score, entity in zip(row["scores"], expected, strict=True):
        assert abs(score - entity["score"]) < 1e-4
    count += len(found)
assert count > 40
