"""Check that sentence-transformers loads a classifier without its head, with mean pooling."""

import sys

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

checkpoint = sys.argv[1]
text = "See you at lunch"
found = SentenceTransformer(checkpoint, device="cpu").encode([text], convert_to_tensor=True)
inputs = AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt")
expected = AutoModel.from_pretrained(checkpoint).eval()(**inputs).last_hidden_state.mean(1)
torch.testing.assert_close(found, expected)
