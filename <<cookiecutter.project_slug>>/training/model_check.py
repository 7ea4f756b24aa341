def check_model(model, tokenizer, examples, max_len):
    return []


def unused_parameters(task, model, batch):
    model.train()
    _, losses = task.forward(model, batch, 1)
    losses["loss"].backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.zero_grad()
    return unused
