"""Which metric is read from code, and whether more of it is better."""

from __future__ import annotations

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep import SmartDefaults
from metta.sweep.config_defaults.metrics import Source, candidates, direction_of, words_of


def metric_of(code: str) -> str:
    return SmartDefaults().infer_metric(dedent(code))


@pytest.mark.parametrize(
    ("code", "metric"),
    [
        ("report_metrics({'reward': r, 'step': n})", "reward"),
        ("metta.sweep.report_metrics({'val_f1': f})", "val_f1"),
        ("report_metrics(dict(accuracy=a, epoch=3))", "accuracy"),
        ("report_metrics({**base, 'auc': 1.0})", "auc"),
        ("metrics = {'mse': e}\nreport_metrics(metrics)", "mse"),
        ("metrics = {}\nmetrics['val/loss'] = 1\nreport_metrics(metrics)", "val/loss"),
        ("def train(c):\n    return {'validation_accuracy': a}", "validation_accuracy"),
        ("def train(c):\n    out: dict = {'score': 1.0}\n    return out", "score"),
        ("def train(c):\n    return {'bleu': b} | extra", "bleu"),
        ("print(json.dumps({'rmse': e, 'lr': lr}))", "rmse"),
        ("json.dump({'iou': e}, file)", "iou"),
        ("print(f'epoch {epoch}: accuracy={accuracy:.3f}')", "accuracy"),
        ("print('test accuracy:', accuracy)", "accuracy"),
        ("print(f'val_loss: {v}, train_loss: {t}')", "val_loss"),
        ("logger.info(f'perplexity={p}')", "perplexity"),
        ("wandb.log({'eval/return': r, 'train/loss': l})", "eval/return"),
        ("mlflow.log_metric('f1', f)", "f1"),
        ("writer.add_scalar('Loss/val', v, step)", "Loss/val"),
        ("self.log('val_acc', acc)", "val_acc"),
        ("self.log_dict({'val_mae': m})", "val_mae"),
    ],
)
def test_it_is_found_wherever_it_is_said(code: str, metric: str) -> None:
    assert metric_of(code) == metric


@pytest.mark.parametrize(
    "code", ["", "x = 1", "accuracy = 0.5", "'accuracy'", "def f(", "print('done')", "report_metrics(unknown())", "\0"]
)
def test_it_is_the_objective_where_nothing_is_found(code: str) -> None:
    assert metric_of(code) == "objective"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("validation_accuracy", "accuracy"),
        ("val_loss", "train_accuracy"),
        ("test_accuracy", "train_accuracy"),
        ("validation_loss", "test_accuracy"),
        ("accuracy", "loss"),
        ("loss", "widgets"),
        ("accuracy", "train_loss"),
    ],
)
def test_of_two_the_one_that_hyperparameters_are_chosen_by_is_taken(better: str, worse: str) -> None:
    for first, second in ((better, worse), (worse, better)):
        assert metric_of(f"report_metrics({{'{first}': 1, '{second}': 2}})") == better


def test_what_the_sweep_sees_goes_before_what_it_does_not() -> None:
    assert metric_of("wandb.log({'val_accuracy': a})\ndef f(c):\n    return {'loss': b}") == "loss"


def test_what_is_counted_or_set_is_no_metric() -> None:
    code = "report_metrics({'epoch': 1, 'learning_rate': lr, 'train_time_seconds': t, 'step': s, 'device': 'cpu'})"
    assert metric_of(code) == "objective"
    assert metric_of("return_value = {'epoch': 1}\nreport_metrics({'epoch': 1, 'lr': 2})") == "objective"


def test_text_is_no_metric() -> None:
    assert metric_of("def f(c):\n    return {'score': 'high', 'accuracy': a}") == "accuracy"


def test_each_candidate_says_where_it_was_found() -> None:
    first, second = candidates("report_metrics({'accuracy': 1})\n\nprint(f'loss={x}')")
    assert (first.name, first.source, first.line, first.direction) == ("accuracy", Source.REPORTED, 1, "maximize")
    assert (second.name, second.source, second.line, second.direction) == ("loss", Source.PRINTED, 3, "minimize")


def test_the_code_is_never_executed() -> None:
    assert metric_of("raise SystemExit(report_metrics({'accuracy': 1 / 0}))") == "accuracy"


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("accuracy", "maximize"),
        ("val_acc", "maximize"),
        ("F1", "maximize"),
        ("r2_score", "maximize"),
        ("eval/episode_reward", "maximize"),
        ("valLoss", "minimize"),
        ("log_loss", "minimize"),
        ("error_rate", "minimize"),
        ("test.RMSE", "minimize"),
        ("neg_mean_squared_error", "maximize"),
        ("negative_log_likelihood", "minimize"),
        ("objective", None),
        ("y", None),
        ("", None),
    ],
)
def test_a_name_tells_whether_more_is_better(name: str, direction: str | None) -> None:
    assert SmartDefaults().infer_direction(name) == direction


@given(name=st.text(max_size=30))
def test_any_name_has_words_and_perhaps_a_direction(name: str) -> None:
    assert all(word == word.lower() and word for word in words_of(name))
    assert direction_of(name) in {None, "maximize", "minimize"}


@given(code=st.text(max_size=200) | st.sampled_from(["report_metrics({", "(" * 500, "return {'a': 1}"]))
def test_any_text_has_a_metric(code: str) -> None:
    assert SmartDefaults().infer_metric(code)
