"""The command line: what it prints, and that a mistake ends in one line."""

import json
from pathlib import Path

import pytest

from graphnas_lib import artifacts, runner
from graphnas_lib.__main__ import main, number
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import count
from graphnas_lib.space import Cell


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with one notebook."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "manifest.toml").write_text('[[notebook]]\nname = "01_only"\ntitle = "One"\nmakes = ["one"]\n')
    content = {"cells": [], "metadata": {"kernelspec": runner.KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "01_only.ipynb").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line in this process: exit status, standard output, standard error."""

    def call(*arguments: str, home: Path) -> tuple[int, str, str]:
        monkeypatch.setenv("GRAPHNAS_HOME", str(home))
        code = main(arguments)
        return (code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce", "--notebooks", "99"], "A notebook is one of 01_only"),
        (["reproduce", "--save-outputs", "--scale", "smoke"], "01_only has no executed copy at scale 'smoke'"),
        (["design"], "needs a budget"),
        (["design", "--params", "1M", "--scale", "paper"], "paper"),
        (["score", "no-such-file.json"], "no file 'no-such-file.json'"),
        (["score", "|nor_conv_3x3~0|+|broken"], "NATS"),
        (["run", "no-such-stage"], "A stage is one of cells"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(home, command, arguments, said):
    code, out, err = command(*arguments, home=home)
    assert code == 1 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_debug_shows_the_traceback(home, command):
    with pytest.raises(ValueError, match="A notebook is one of"):
        command("reproduce", "--debug", "--notebooks", "99", home=home)


def test_list_and_why(home, command):
    code, out, _ = command("reproduce", "--scale", "smoke", "--list", home=home)
    assert code == 0 and out.count("would run") == 1
    _, out, _ = command("reproduce", "--scale", "smoke", "--why", "01", home=home)
    assert out.startswith("01_only  would run: it has not run to its end yet; output one.manifest.json is missing")


def test_score_prints_costs_and_proxies(tmp_path, command):
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    stacked = stack_cell(Cell.from_nats(cell), width=8, repeats=1)
    path = tmp_path / "small.json"
    path.write_text(stacked.to_json())
    code, out, _ = command("score", str(path), "--data", "digits", "--input", "3x16x16", home=tmp_path)
    told = dict(line.split()[:2] for line in out.splitlines())
    expected = vars(count(stacked, input_shape=(3, 16, 16), classes=10))
    assert code == 0 and {name: int(told[name].replace(",", "")) for name in expected} == expected
    assert all(float(told[name]) > 0 for name in ("tcet", "naswot", "snip_ssnr"))


def test_doctor_finds_a_damaged_artifact(tmp_path, command, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    artifacts.save("gvae", {"gvae.json": {"a": 1}}, scale="lite", seed=0, seconds=1.0)
    code, out, _ = command("doctor", home=tmp_path)
    assert code == 0 and "artifacts at lite: gvae" in out and "all as their SHA-256 says" in out
    (tmp_path / "data" / "lite" / "gvae.json").write_text('{"a": 2}')
    code, out, _ = command("doctor", home=tmp_path)
    assert code == 1 and "DAMAGED: gvae.json of stage gvae" in out


@pytest.mark.parametrize(("text", "value"), [("1M", 1e6), ("300M", 3e8), ("1.5G", 1.5e9), ("1e6", 1e6), ("2e3K", 2e6)])
def test_numbers_with_units(text, value):
    assert number(text) == value
