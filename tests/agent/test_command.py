"""Parameters into arguments, and metrics out of whatever a program writes, however it arrives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.agent.command import MetricsTail, arguments_for, check_metrics_file, check_placeholders
from metta.sweep.errors import ConfigError, MetricError
from metta.sweep.model.space import Choice, SearchSpace, Uniform
from metta.sweep.model.sweep import MetricsSource

RUN = {"run_id": "7kq9z", "run_directory": "/files/runs/7kq9z"}

_LR = SearchSpace.of({"lr": Uniform(0, 1)})


def arguments(argv: list[str], config: dict[str, Any], names: list[str] | None = None) -> list[str]:
    return arguments_for(argv, config, RUN, names if names is not None else list(config))


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "filled"),
        [
            ("--lr={lr}", "--lr=0.001"),
            ("{lr}", "0.001"),
            ("{lr}{kind}", "0.001sgd"),
            ("{a.b}", "7"),
            ("{batch-size}", "32"),
            ("{größe}", "3"),
            ("--out={run_directory}/{run_id}.json", "--out=/files/runs/7kq9z/7kq9z.json"),
            ("{{lr}}", "{lr}"),
            ("{{{lr}}}", "{0.001}"),
            ("{}", "{}"),
            ('{"lr": {lr}}', '{"lr": 0.001}'),
            ("{ lr }", "{ lr }"),
            ("plain", "plain"),
            ("", ""),
        ],
    )
    def test_placeholders_are_filled_and_other_braces_stay(self, argument: str, filled: str) -> None:
        config = {"lr": 0.001, "kind": "sgd", "a.b": 7, "batch-size": 32, "größe": 3}
        assert arguments([argument], config) == [filled]

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("a b", "a b"),
            ("", ""),
            (True, "true"),
            (None, "null"),
            (1e-05, "1e-05"),
            (3, "3"),
            ([64, 64], "[64, 64]"),
            ({"a": "b"}, '{"a": "b"}'),
            ("{lr}", "{lr}"),
        ],
    )
    def test_values_are_text_as_it_is_and_json_otherwise(self, value: Any, text: str) -> None:
        assert arguments(["{x}"], {"x": value}) == [text]

    def test_an_argument_of_an_inactive_parameter_is_left_out(self) -> None:
        argv = ["train", "--kind={kind}", "--momentum={momentum}", "--both={kind},{momentum}"]
        names = ["kind", "momentum"]
        assert arguments(argv, {"kind": "adam"}, names) == ["train", "--kind=adam"]
        assert arguments(argv, {"kind": "sgd", "momentum": 0.9}, names) == [
            "train",
            "--kind=sgd",
            "--momentum=0.9",
            "--both=sgd,0.9",
        ]

    def test_an_argument_of_the_checkpoint_is_left_out_in_attempts_that_start_anew(self) -> None:
        argv = ["train", "--resume={checkpoint}", "--lr={lr}"]
        assert arguments(argv, {"lr": 1}) == ["train", "--lr=1"]
        run = {**RUN, "checkpoint": "/files/model.pt"}
        assert arguments_for(argv, {"lr": 1}, run, ["lr"]) == ["train", "--resume=/files/model.pt", "--lr=1"]

    def test_a_parameter_may_be_called_checkpoint_and_is_what_is_meant_then(self) -> None:
        run = {**RUN, "checkpoint": "/files/model.pt"}
        for config, expected in (({"checkpoint": "bert"}, ["--from=bert"]), ({}, [])):
            assert arguments_for(["--from={checkpoint}"], config, run, ["checkpoint"]) == expected

    def test_args_stands_for_all_active_parameters(self) -> None:
        config = {"lr": 0.1, "trainer.kind": "sgd", "layers": [1, 2]}
        assert arguments(["train", "{args}", "-v"], config, [*config, "momentum"]) == [
            "train",
            "--lr=0.1",
            "--trainer.kind=sgd",
            "--layers=[1, 2]",
            "-v",
        ]

    @given(st.text())
    def test_doubled_braces_protect_any_text(self, text: str) -> None:
        protected = text.replace("{", "{{").replace("}", "}}")
        assert arguments([protected], {"lr": 1}) == [text]

    @given(st.dictionaries(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?", fullmatch=True), st.text(), max_size=4))
    def test_a_value_arrives_unchanged_whatever_it_is(self, config: dict[str, str]) -> None:
        assert arguments([f"{{{name}}}" for name in config], config) == list(config.values())


class TestPlaceholderChecks:
    def test_known_names_braces_and_args_pass(self) -> None:
        check_placeholders("command", ["{lr}", "{run_id}", "{run_directory}", "{{x}}", "{}", "{args}"], _LR)

    @pytest.mark.parametrize("argument", ["{lrr}", "--x={lr}{nope}", "{nope.x}", "--all={args}"])
    def test_an_unknown_name_is_refused_with_the_closest_known(self, argument: str) -> None:
        with pytest.raises(
            ConfigError, match=r"^command: '.*', which is no parameter; .*known: checkpoint, lr, run_directory, run_id"
        ):
            check_placeholders("command", [argument], _LR)

    def test_the_flag_of_a_checkpoint_must_not_stay_behind(self) -> None:
        check_placeholders("command", ["train", "--resume={checkpoint}"], _LR)
        with pytest.raises(ConfigError, match=r"write both as one argument: '--resume=\{checkpoint\}'"):
            check_placeholders("command", ["train", "--resume", "{checkpoint}"], _LR)
        check_placeholders("command", ["--base", "{checkpoint}"], SearchSpace.of({"checkpoint": Choice(["a", "b"])}))

    def test_a_metrics_file_cannot_be_named_for_the_checkpoint(self) -> None:
        with pytest.raises(ConfigError, match="names 'checkpoint', which not every attempt has"):
            check_metrics_file("{run_id}/{checkpoint}.json", _LR, is_shared=False)

    SPACE = SearchSpace.of(
        {"lr": Uniform(0, 1), "kind": Choice(["a", "b"]), "momentum": Uniform(0, 1, when={"kind": "a"})}
    )

    @pytest.mark.parametrize("file", ["{run_directory}/metrics.json", "out/{run_id}-{lr}.jsonl"])
    def test_a_metrics_file_for_each_run_passes(self, file: str) -> None:
        check_metrics_file(file, self.SPACE, is_shared=True)

    def test_one_metrics_file_will_do_where_runs_go_one_by_one(self) -> None:
        check_metrics_file("metrics.json", self.SPACE, is_shared=False)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("metrics.json", "is one file for runs that go on at the same time; put {run_id} or {run_directory} into"),
            ("{lr}.json", "is one file for runs that go on at the same time"),
            ("{run_id}/{momentum}.json", "names 'momentum', a parameter that not every run has"),
            ("{runid}/m.json", "names 'runid', which is no parameter"),
        ],
    )
    def test_a_metrics_file_that_not_every_run_has_is_refused(self, file: str, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            check_metrics_file(file, self.SPACE, is_shared=True)
        assert str(caught.value).startswith(f"metrics.file: {file!r} {message}")


class Program:
    """A program's output, and what is made of it."""

    def __init__(self, folder: Path, source: MetricsSource) -> None:
        self.log = folder / "train-1.log"
        self.log.unlink(missing_ok=True)
        self.file = folder / "metrics.json"
        self.tail = MetricsTail(source, self.log, folder, {})

    def prints(self, output: bytes) -> list[dict[str, float]]:
        with self.log.open("ab") as log:
            log.write(output)
        return list(self.tail.read())

    def writes(self, content: str, mode: str = "w") -> list[dict[str, float]]:
        with self.file.open(mode) as file:
            file.write(content)
        return list(self.tail.read())

    def ends(self) -> list[dict[str, float]]:
        return list(self.tail.read(final=True))


class TestLongOutput:
    MIB = 1 << 20

    @pytest.fixture
    def program(self, tmp_path: Path) -> Program:
        return Program(tmp_path, MetricsSource(stdout="json"))

    def prints(self, program: Program, output: bytes) -> list[dict[str, float]]:
        found = program.prints(output)
        while program.tail.behind:
            found += program.tail.read()
        return found + list(program.tail.read())

    def test_a_line_that_does_not_end_is_not_kept_and_what_follows_it_is_found(self, program: Program) -> None:
        piece = b'{"a": 0, "b": [' + b"1," * self.MIB
        for _ in range(4):
            assert self.prints(program, piece) == []
        [followed] = program.tail._followed
        assert not followed._rest
        assert self.prints(program, b'{"a": 1}\n{"a": 2}\n') == [{"a": 2.0}]
        assert program.ends() == []

    def test_a_progress_bar_may_be_as_long_as_it_likes(self, program: Program) -> None:
        assert self.prints(program, b"\r 1 % of it" * self.MIB) == []
        assert self.prints(program, b'\r100 %{"a": 1}\n') == [{"a": 1.0}]

    def test_all_states_of_a_long_progress_bar_are_searched(self, tmp_path: Path) -> None:
        program = Program(tmp_path, MetricsSource(regex="loss=(?P<loss>[0-9]+);"))
        found = self.prints(program, b"".join(b"\rloss=%d;%b" % (loss, b"#" * 1000) for loss in range(3000)))
        assert found[-1]["loss"] > 1000
        assert program.ends() == [{"loss": 2999.0}]

    def test_what_is_still_to_be_read_is_told_in_pieces(self, program: Program) -> None:
        assert program.tail.behind == 0
        with program.log.open("wb") as log:
            log.write(b'{"a": 1}' + b"\n" * 3 * self.MIB)
        assert program.tail.behind == 3
        assert list(program.tail.read()) == [{"a": 1.0}]
        assert program.tail.behind == 2


class TestJsonLines:
    @pytest.fixture
    def program(self, tmp_path: Path) -> Program:
        return Program(tmp_path, MetricsSource(stdout="json"))

    def test_it_is_the_default(self, tmp_path: Path) -> None:
        assert Program(tmp_path, MetricsSource()).prints(b'{"a": 1}\n') == [{"a": 1.0}]

    def test_the_numbers_of_each_object_are_metrics(self, program: Program) -> None:
        line = b'{"loss": 0.5, "epoch": 3, "note": "x", "ok": true, "none": null, "list": [1], "nested": {"a": 1}}\n'
        assert program.prints(line) == [{"loss": 0.5, "epoch": 3.0}]

    @pytest.mark.parametrize(
        "line",
        [
            b"plain text",
            b"[1, 2]",
            b"3",
            b"{}",
            b'{"note": "x"}',
            b"{not json}",
            b"{'a': 1}",
            b'{"a": 1} trailing',
            b'prefix {"a": 1}',
            b"{" * 100_000,
            b'{"a": ' * 100_000,
            b'{"a": ' + b"9" * 5000 + b"}",
            b"\x00\xff\xfe\x80{\x00",
            b'{"a\xff": "x"}',
            b"",
        ],
    )
    def test_everything_else_is_none_and_does_no_harm(self, program: Program, line: bytes) -> None:
        assert program.prints(line + b"\n") == []
        assert program.prints(b'{"a": 1}\n') == [{"a": 1.0}]
        assert program.ends() == []

    @pytest.mark.parametrize(
        ("line", "metric"),
        [
            (b'{"a": NaN}', "a"),
            (b'{"a": 1, "b": Infinity}', "b"),
            (b'{"a": -Infinity}', "a"),
            (b'{"a": 1e999}', "a"),
            (b'{"a": ' + b"9" * 400 + b"}", "a"),
        ],
    )
    def test_what_is_not_finite_is_an_error_that_names_the_metric(
        self, program: Program, line: bytes, metric: str
    ) -> None:
        with pytest.raises(MetricError, match=rf"^metric '{metric}' is (nan|inf|-inf); only finite numbers"):
            program.prints(line + b"\n")

    def test_metrics_before_an_error_are_kept(self, program: Program) -> None:
        program.log.write_bytes(b'{"a": 1}\n{"a": NaN}\n')
        found = program.tail.read()
        assert next(found) == {"a": 1.0}
        with pytest.raises(MetricError):
            next(found)

    def test_a_line_counts_when_it_is_complete(self, program: Program) -> None:
        assert program.prints(b'{"acc') == []
        assert program.prints(b'uracy": 0.9') == []
        assert program.prints(b'3}\n{"accuracy": 1}') == [{"accuracy": 0.93}]
        assert program.ends() == [{"accuracy": 1.0}]

    def test_an_object_over_several_lines_counts_when_it_is_all_there_is(self, program: Program) -> None:
        assert program.prints(json.dumps({"a": 1, "b": {"c": 2}}, indent=2).encode() + b"\n") == []
        assert program.ends() == [{"a": 1.0}]

    def test_a_progress_bar_before_it_does_not_hide_an_object(self, program: Program) -> None:
        bar = "\r 50%|█████     | 1/2 [00:01<00:01]".encode()
        assert program.prints(bar + b'{"a": 1}\r\n' + bar + b"\n" + bar + b'\r{"a": 2}\n') == [{"a": 1.0}, {"a": 2.0}]

    def test_a_program_that_printed_nothing_has_no_metrics(self, program: Program) -> None:
        assert list(program.tail.read()) == []
        assert program.ends() == []

    def test_a_flood_is_read_to_its_end(self, program: Program) -> None:
        lines = 100_000
        program.log.write_bytes(b"".join(b'{"n": %d}\n' % number for number in range(lines)))
        assert len([*program.tail.read(), *program.tail.read(final=True)]) == lines


class TestPatterns:
    def program(self, tmp_path: Path, regex: str, **source: Any) -> Program:
        return Program(tmp_path, MetricsSource(regex=regex, **source))

    def test_named_groups_are_metrics(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, r"epoch (?P<epoch>\d+).* acc (?P<accuracy>[\d.]+)")
        assert program.prints(b"epoch 1: acc 0.5\nepoch 2\nx epoch 3; acc .75 acc\n") == [
            {"epoch": 1.0, "accuracy": 0.5},
            {"epoch": 3.0, "accuracy": 0.75},
        ]

    def test_two_plain_groups_are_name_and_number(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, r"(\w+)=([-+.\deE]+)")
        assert program.prints(b"loss=1e-3 accuracy=0.9 lr = 3\n") == [{"loss": 0.001, "accuracy": 0.9}]

    def test_a_group_that_took_no_part_is_no_metric(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, r"(?:acc (?P<acc>\S+)|loss (?P<loss>\S+))")
        assert program.prints(b"acc 1\nloss 2\nacc 3 loss 4\n") == [{"acc": 1}, {"loss": 2}, {"acc": 3, "loss": 4}]

    def test_a_last_line_without_an_end_counts(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, r"acc (?P<acc>\S+)")
        assert program.prints(b"acc 1\nacc 2") == [{"acc": 1.0}]
        assert program.ends() == [{"acc": 2.0}]

    @pytest.mark.parametrize(
        ("text", "message"), [("high", "must be a number, the command printed 'high'"), ("nan", "")]
    )
    def test_what_is_no_finite_number_is_an_error(self, tmp_path: Path, text: str, message: str) -> None:
        program = self.program(tmp_path, r"acc (?P<acc>\w+)")
        with pytest.raises(MetricError, match=f"^metric 'acc' .*{message}"):
            program.prints(f"acc {text}\n".encode())

    def test_json_lines_are_metrics_too_only_where_that_is_said(self, tmp_path: Path) -> None:
        output = b'{"loss": 2}\nacc 1\n{acc 3}\n'
        assert self.program(tmp_path, r"acc (?P<acc>\d)").prints(output) == [{"acc": 1.0}, {"acc": 3.0}]
        both = self.program(tmp_path, r"acc (?P<acc>\d)", stdout="json")
        assert both.prints(output) == [{"loss": 2.0}, {"acc": 1.0}, {"acc": 3.0}]

    def test_binary_garbage_is_searched_like_any_line(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, r"acc (?P<acc>\d)")
        assert program.prints(b"\xff\x00acc 1\xfe\n" + bytes(range(256)) + b"\n") == [{"acc": 1.0}]


class TestFiles:
    @pytest.fixture
    def program(self, tmp_path: Path) -> Program:
        return Program(tmp_path, MetricsSource(file="metrics.json"))

    def test_json_lines_are_followed(self, program: Program) -> None:
        assert program.prints(b'{"from": 1, "stdout": 2}\n') == []
        assert program.writes('{"a": 1}\n{"a":') == [{"a": 1.0}]
        assert program.writes(" 2}\n", "a") == [{"a": 2.0}]
        assert program.ends() == []

    def test_an_indented_object_counts_at_the_end(self, program: Program) -> None:
        assert program.writes(json.dumps({"a": 1, "b": 2.5}, indent=4)) == []
        assert program.ends() == [{"a": 1.0, "b": 2.5}]

    def test_a_missing_file_is_no_metrics(self, program: Program) -> None:
        assert program.ends() == []

    @pytest.mark.parametrize("indent", [None, 2])
    @pytest.mark.parametrize("end", ["", "\n"])
    def test_the_last_version_of_a_file_written_again_and_again_counts(
        self, program: Program, indent: int | None, end: str
    ) -> None:
        found = []
        for epoch, loss in enumerate([0.5, 0.25, 0.125, 0.5]):
            found += program.writes(json.dumps({"loss": loss, "epoch": epoch}, indent=indent) + end)
        found += program.ends()
        assert found[-1] == {"loss": 0.5, "epoch": 3.0}

    def test_a_file_that_replaces_another_is_read_from_its_start(self, program: Program, tmp_path: Path) -> None:
        assert program.writes('{"a": 1}\n') == [{"a": 1.0}]
        (tmp_path / "new").write_text('{"a": 2}\n{"a": 3}\n')
        os.replace(tmp_path / "new", program.file)
        assert program.writes("", "a") == [{"a": 2.0}, {"a": 3.0}]
        assert program.writes('{"a": 4}\n', "w") == [{"a": 4.0}]

    def test_what_an_earlier_run_left_in_it_is_not_taken_for_this_one_s(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.json").write_text('{"a": 1, "b": 1}\n')
        silent = Program(tmp_path, MetricsSource(file="metrics.json"))
        assert list(silent.tail.read()) == []
        assert silent.ends() == []
        adding = Program(tmp_path, MetricsSource(file="metrics.json"))
        assert adding.writes('{"a": 2}\n', "a") == [{"a": 2.0}]
        assert adding.ends() == []
        rewriting = Program(tmp_path, MetricsSource(file="metrics.json"))
        assert rewriting.writes('{"a": 3}\n', "w") == [{"a": 3.0}]
        assert rewriting.ends() == []

    def test_its_name_may_hold_placeholders(self, tmp_path: Path) -> None:
        source = MetricsSource(file="{run_id}-{lr}.json")
        tail = MetricsTail(source, tmp_path / "log", tmp_path, {"run_id": "7kq9z", "lr": 0.1})
        (tmp_path / "7kq9z-0.1.json").write_text('{"a": 1}\n')
        assert list(tail.read()) == [{"a": 1.0}]

    def test_a_file_that_cannot_be_read_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        tail = MetricsTail(MetricsSource(file="folder"), tmp_path / "log", tmp_path, {})
        (tmp_path / "folder").mkdir()
        with pytest.raises(MetricError, match=rf"^metrics cannot be read from {tmp_path}/folder: Is a directory"):
            list(tail.read())
        (tmp_path / "file").touch()
        for name in ("x" * 300, "null\0byte", "file/below"):
            with pytest.raises(MetricError, match=r"^metrics cannot be read from"):
                MetricsTail(MetricsSource(file=name), tmp_path / "log", tmp_path, {})


numbers = st.floats(allow_nan=False, allow_infinity=False)
json_lines = st.dictionaries(st.text(min_size=1), st.one_of(numbers, st.text(), st.booleans())).map(
    lambda found: json.dumps(found).encode()
)
lines = st.one_of(json_lines, st.binary().map(lambda data: data.replace(b"NaN", b"").replace(b"Infinity", b"")))


@given(
    output=st.lists(lines, max_size=8).map(b"\n".join),
    cuts=st.lists(st.integers(0, 400), max_size=6).map(sorted),
    source=st.sampled_from([MetricsSource(), MetricsSource(regex=r"(\w+)=(\d+)"), MetricsSource(file="metrics.json")]),
)
def test_metrics_do_not_depend_on_the_pieces_in_which_output_arrives(
    tmp_path_factory: pytest.TempPathFactory, output: bytes, cuts: list[int], source: MetricsSource
) -> None:
    folder = tmp_path_factory.getbasetemp() / "pieces"
    folder.mkdir(exist_ok=True)

    def metrics(pieces: list[bytes]) -> list[dict[str, float]]:
        (folder / "metrics.json").unlink(missing_ok=True)
        program = Program(folder, source)
        followed = program.file if source.file else program.log
        found = []
        for piece in pieces:
            with followed.open("ab") as stream:
                stream.write(piece)
            found += program.tail.read()
        return found + program.ends()

    bounds = [0, *cuts, len(output)]
    pieces = [output[start:stop] for start, stop in zip(bounds, [*cuts, None], strict=False)]
    assert b"".join(pieces) == output
    assert metrics(pieces) == metrics([output])


def test_a_flag_is_not_left_behind_without_its_value() -> None:
    space = SearchSpace.of({"optimizer": Choice(["sgd", "adam"]), "momentum": Uniform(0, 1, when={"optimizer": "sgd"})})
    with pytest.raises(ConfigError, match=r"write both as one argument: '--momentum=\{momentum\}'"):
        check_placeholders("command", ["train", "--momentum", "{momentum}"], space)
    check_placeholders("command", ["train", "--optimizer", "{optimizer}", "--momentum={momentum}"], space)
