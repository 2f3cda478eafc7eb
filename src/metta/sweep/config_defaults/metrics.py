"""Which metric a program is about, read from its code; the code is parsed and never executed.

Where a name is found says how sure it is that the sweep will see it: what is returned or handed to `report_metrics` it
does; of a command it sees what is written as JSON, and by a pattern what is printed otherwise; what goes to another
logger it does not see, but it shows what counts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import IntEnum

import msgspec

from metta.sweep.model.sweep import Direction


class Source(IntEnum):
    """Where a name was found, the surest first."""

    REPORTED = 0
    RETURNED = 1
    #: As JSON.
    WRITTEN = 2
    #: With its name as a label.
    PRINTED = 3
    LOGGED = 4


class Split(IntEnum):
    """Which data a metric is about; the first is what hyperparameters are chosen by."""

    VALIDATION = 0
    TEST = 1
    UNKNOWN = 2
    TRAINING = 3


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A name that may be the metric's."""

    name: str
    source: Source
    #: What is known to be good when it is high, or when it is low; None where the name says nothing.
    direction: Direction | None
    line: int

    @property
    def split(self) -> Split:
        """The data that it is about, as far as its name tells."""
        words = set(words_of(self.name))
        return next((split for split, names in _SPLITS.items() if names & words), Split.UNKNOWN)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: Words of names, by what is good for them. Where words of both kinds meet ("log_loss_score"), the last one counts.
_HIGH = _set(
    "accuracy acc auc auroc auprc ap map f1 fscore precision recall r2 reward return returns score bleu rouge meteor "
    "iou miou dice psnr ssim ndcg mrr hit hits success win winrate likelihood elbo correlation pearson spearman kappa "
    "mcc sharpe profit throughput speedup sps fps top1 top5 reliability"
)
_LOW = _set(
    "loss error err mse rmse mae mape rmsle nll perplexity ppl wer cer fid kid bpb bpc bpd logloss crossentropy "
    "entropy cost regret distance deviance kl divergence eer hamming latency brier ece residual violations"
)
#: Words of what is counted, set or measured of the process itself.
_BOOKKEEPING = _set(
    "epoch epochs step steps iteration iterations iter batch lr learning rate time seconds duration elapsed seed id "
    "name samples tokens size count num n index timestamp memory device config params parameters path status version "
    "args grad norm momentum decay model checkpoint worker rank world frames episode episodes length runs"
)
_SPLITS = {
    Split.VALIDATION: frozenset({"val", "valid", "validation", "dev", "eval", "evaluation", "cv", "heldout"}),
    Split.TEST: frozenset({"test", "testing"}),
    Split.TRAINING: frozenset({"train", "training", "tr"}),
}
_SPLIT_WORDS = frozenset().union(*_SPLITS.values())
#: Methods and functions of loggers whose first argument is a mapping of names, or a name.
_LOG_MAPPINGS = frozenset({"log", "log_metrics", "log_dict", "add_scalars", "log_kwargs", "logkvs"})
_LOG_NAMES = frozenset({"log", "log_metric", "add_scalar", "logkv", "record", "scalar", "track"})
#: Text before a value in a format string or between the arguments of print: `accuracy: ` or `val_loss=`.
_LABEL = re.compile(r"([A-Za-z][\w/.@-]*)\s*[=:]\s*$")


def candidates(code: str) -> list[Candidate]:
    """Names in the code that may be the metric's, the likeliest first.

    Raises:
        SyntaxError: it is no Python.
    """
    found: dict[str, Candidate] = {}
    for name, source, line in _names(ast.parse(code)):
        if set(words_of(name)) <= _BOOKKEEPING | _SPLIT_WORDS:
            continue
        candidate = Candidate(name=name, source=source, direction=direction_of(name), line=line)
        if name not in found or source < found[name].source:
            found[name] = candidate
    return sorted(found.values(), key=_rank)


def _rank(candidate: Candidate) -> tuple[int, ...]:
    is_objective = words_of(candidate.name)[-1] in {"objective", "metric"}
    # What a sweep sees before what it does not; then the data it is about; then names that say what they are.
    return (
        candidate.source is Source.LOGGED,
        candidate.split,
        candidate.direction is None and not is_objective,
        candidate.direction == "minimize",
        candidate.source,
        candidate.line,
    )


def direction_of(name: str) -> Direction | None:
    """Whether a metric of this name is good when it is high or when it is low; None where the name says nothing."""
    words = words_of(name)
    joined = "".join(words)
    if joined.startswith(("neg", "negative", "minus")) and len(words) > 1:
        opposites: dict[Direction | None, Direction | None] = {"maximize": "minimize", "minimize": "maximize"}
        return opposites.get(direction_of("_".join(words[1:])))
    for word in reversed(words):
        if word in _HIGH:
            return "maximize"
        if word in _LOW:
            return "minimize"
    return None


def words_of(name: str) -> list[str]:
    """The words of a name, in small letters: `valLoss`, `val/loss` and `val_loss` are val and loss."""
    separated = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return [word for word in re.split(r"[^a-zA-Z0-9]+", separated.lower()) if word]


def _names(tree: ast.Module) -> Iterator[tuple[str, Source, int]]:
    dictionaries = _assigned_dictionaries(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            for name in _keys(node.value, dictionaries):
                yield name, Source.RETURNED, node.lineno
        elif isinstance(node, ast.Call):
            for name, source in _names_of_call(node, dictionaries):
                yield name, source, node.lineno


def _names_of_call(call: ast.Call, dictionaries: dict[str, list[str]]) -> Iterator[tuple[str, Source]]:
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    if function == "report_metrics" and first is not None:
        yield from ((name, Source.REPORTED) for name in _keys(first, dictionaries))
    elif function in {"dump", "dumps"} and first is not None:
        yield from ((name, Source.WRITTEN) for name in _keys(first, dictionaries))
    elif function in {"print", "echo", "info"}:
        yield from ((name, Source.PRINTED) for name in _labels(call.args))
    elif first is not None and isinstance(first, ast.Constant) and isinstance(first.value, str):
        if function in _LOG_NAMES and len(call.args) > 1:
            yield first.value, Source.LOGGED
    elif function in _LOG_MAPPINGS and first is not None:
        yield from ((name, Source.LOGGED) for name in _keys(first, dictionaries))


def _keys(node: ast.expr, dictionaries: dict[str, list[str]]) -> Iterator[str]:
    """Names in a dictionary: written out, as `dict(...)`, joined by `|` or `**`, or in a variable that holds one."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                yield from _keys(value, dictionaries)
            elif isinstance(key, ast.Constant) and isinstance(key.value, str) and not _is_text(value):
                yield key.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        yield from (keyword.arg for keyword in node.keywords if keyword.arg is not None and not _is_text(keyword.value))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _keys(node.left, dictionaries)
        yield from _keys(node.right, dictionaries)
    elif isinstance(node, ast.Name):
        yield from dictionaries.get(node.id, [])


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
    )


def _assigned_dictionaries(tree: ast.Module) -> dict[str, list[str]]:
    """Names of dictionaries by the variable that they are assigned to, item by item or at once."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                found.setdefault(target.id, []).extend(_keys(value, {}))
            elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
                key = target.slice
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    found.setdefault(target.value.id, []).append(key.value)
    return found


def _labels(arguments: list[ast.expr]) -> Iterator[str]:
    """Labels of values in what is printed: `f"accuracy={accuracy}"` or `"accuracy:", accuracy`."""
    text = ""
    parts: list[ast.expr] = []
    for argument in arguments:
        parts += argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    for part in parts:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            text = part.value
            continue
        if match := _LABEL.search(text):
            yield match[1]
        text = ""
