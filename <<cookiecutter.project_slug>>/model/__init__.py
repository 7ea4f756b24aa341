"""The files for you to rewrite: the model, its loss, its data, scores and predictions."""
