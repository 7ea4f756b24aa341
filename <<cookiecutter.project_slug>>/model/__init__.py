"""Files for you to rewrite: configuration, model, loss, data set, scores and predictions."""
