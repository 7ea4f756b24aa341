"""With several validation sets, each set and all sets together have losses and scores."""

import pytest
from huggingface_hub import ModelCard

import train
from errors import RunError
from helpers.assertions import read_log, read_state
from helpers.processes import Launch
from training.set_names import named_sources

PROOF = pytest.mark.proof


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.jsonl", {"": "a.jsonl"}),
        (["a.jsonl", "b.jsonl"], {"": ["a.jsonl", "b.jsonl"]}),
        ("news=a.jsonl", {"news": "a.jsonl"}),
        (["a-1=a.jsonl", "b=b.jsonl"], {"a-1": "a.jsonl", "b": "b.jsonl"}),
        (["a=1.jsonl", "b=2.jsonl", "a=3.jsonl"], {"a": ["1.jsonl", "3.jsonl"], "b": "2.jsonl"}),
        ("https://host/a?split=test", {"": "https://host/a?split=test"}),
        ("web=https://host/a?split=test", {"web": "https://host/a?split=test"}),
        ("glue=nyu-mll/glue:sst2:test", {"glue": "nyu-mll/glue:sst2:test"}),
    ],
)
def test_names_are_separated_from_paths(value, expected):
    assert named_sources(value) == expected


def test_existing_path_is_not_split_into_name_and_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "size=3.jsonl").touch()
    assert named_sources("size=3.jsonl") == {"": "size=3.jsonl"}
    with pytest.raises(RunError, match=r"size=3.jsonl: has no name, unlike a=b.jsonl"):
        named_sources(["size=3.jsonl", "a=b.jsonl"])


@pytest.fixture
def parts(sample, tmp_path) -> dict[str, str]:
    """Split the validation data into two named files."""
    lines = (sample / "valid.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    files = {"news": lines[:13], "web": lines[13:]}
    for name, part in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return {name: str(tmp_path / f"{name}.jsonl") for name in files}


@pytest.fixture
def named(parts) -> list[str]:
    return ["--valid_input", *(f"{name}={path}" for name, path in parts.items())]


@PROOF
@pytest.mark.parametrize(("processes", "size"), [(1, 3), (2, 2)])
def test_each_set_and_all_sets_together_have_the_correct_scores(
    processes, size, arguments, parts, named, tmp_path, uninterrupted
):
    arguments += ["--lr", "0", "--max_steps", "1"]  # the weights do not change

    def expected(*files: str) -> dict:
        outdir = uninterrupted([*arguments, "--valid_input", *files])
        return read_log(outdir)["Epoch 0"]["valid_log"]

    run = [*arguments, *named, "--eval_batch_size", str(size), "--outdir", str(tmp_path / "run")]
    run += ["--batch_size", str(8 // processes)]
    Launch(run, tmp_path / "output", processes).expect()
    log = read_log(tmp_path / "run")["Epoch 0"]["valid_log"]
    alone = {name: expected(path) for name, path in parts.items()}
    for name, part in alone.items():
        own = {score: log[f"{name}/{score}"] for score in part}
        assert own == pytest.approx(part, rel=1e-5)
    count = sum(part["count"] for part in alone.values())
    assert log["count"] == count
    total = sum(part["loss"] * part["count"] for part in alone.values())
    assert log["loss"] == pytest.approx(total / count, rel=1e-6)
    joined = expected(*parts.values())
    if joined["count"] == count:  # a causal LM concatenates the files: one more target
        assert {score: log[score] for score in joined} == pytest.approx(joined, rel=1e-5)


@PROOF
def test_best_is_chosen_by_the_score_of_one_set(arguments, named, tmp_path, capfd):
    train.main([*arguments, *named, "--metric_for_best_model", "web/loss"])
    state = read_state(tmp_path / "run" / "best")
    log = read_log(tmp_path / "run")
    losses = {epoch: entry["valid_log"]["web/loss"] for epoch, entry in log.items()}
    assert state["best"]["epoch"] == min(losses, key=losses.__getitem__)
    assert set(state["data"]["valid"]) == {"news", "web"}
    shown = capfd.readouterr()
    assert "[VALID news]" in shown.err
    assert "[VALID web]" in shown.err
    card = ModelCard.load(tmp_path / "run" / "best" / "README.md")
    results = [r for r in card.data.eval_results if r.metric_type == "loss"]
    values = {result.dataset_name: result.metric_value for result in results}
    assert len(values) == 3
    assert values["web"] == losses[state["best"]["epoch"]]
    assert "count" not in {result.metric_type for result in card.data.eval_results}


def test_score_of_an_unknown_set_is_refused(arguments, named):
    with pytest.raises(RunError, match="books/loss: no such score; expected one of .*news/loss"):
        train.main([*arguments, *named, "--metric_for_best_model", "books/loss"])


@PROOF
def test_resumed_run_compares_each_set_by_its_name(arguments, parts, named, tmp_path, capfd):
    arguments += [*named, "--metric_for_best_model", "news/loss"]
    train.main([*arguments, "--max_steps", "1"])
    resume = ["--restore_dir", str(tmp_path / "run" / "last"), "--max_steps"]
    for steps, (name, path) in enumerate(sorted(parts.items(), reverse=True), 2):
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()[1:]
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(lines)
        capfd.readouterr()
        train.main([*resume, str(steps)])
        reason = f"the validation data {name} changed: the next validation"
        assert (reason in capfd.readouterr().out) == (name == "news")
