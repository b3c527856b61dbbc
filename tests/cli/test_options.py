"""Each command's options are those of the function that it calls: the same names, the same defaults."""

import inspect

import pytest

import deconvviz
from deconvviz.cli import demo
from deconvviz.cli.options import ALLOW_GRADIENT, BATCH_SIZE, QUIET, RULE, WORKERS, K
from deconvviz.cli.parser import COMMANDS, parse

# (command, argument of the function): why its default is another one
OTHER_DEFAULTS = {
    ("demo", "out"): "a folder has to be named in Python",
    ("train", "out"): "a folder has to be named in Python",
}
# (command, argument): why the command does not offer it
NOT_OFFERED = {
    ("evaluate", "labels"): "the folders are the labels",
    ("evidence", "top"): "a scan in memory",
    ("project", "top"): "a scan in memory",
    ("compare_methods", "own"): "functions",
    ("filters", "band"): "the Python call is for that",
    ("occlude", "masks"): "arrays",
    ("occlude", "class_names"): "--target takes the network's own names",
    ("gradient_std", "labels"): "the folders are the labels",
    ("probe", "labels"): "the folders are the labels",
    ("report", "top"): "a scan in memory",
    ("report", "highlights"): "a mapping",
    ("report", "projections"): "results in memory",
    ("maximize", "directions"): "arrays",
    ("maximize", "top"): "a scan in memory",
    ("top_regions", "boxes"): "arrays",
    ("train", "class_names"): "a mapping",
    ("train", "keep_epochs"): "for programs",
    ("train", "on_epoch"): "a function",
}
HAVE_FUNCTIONS = [c for c in COMMANDS if c.function or c.name == "demo"]


def function_of(command):
    return demo.run if command.name == "demo" else getattr(deconvviz, command.function)


def named(command):
    return {option.to: option for option in command.options if option.to is not None}


@pytest.mark.parametrize("command", HAVE_FUNCTIONS, ids=lambda c: c.name)
def test_options_have_the_names_and_defaults_of_the_functions_arguments(command):
    parameters = inspect.signature(function_of(command)).parameters
    for name, option in named(command).items():
        assert name in parameters, f"{command.function} has no {name}"
        wanted = parameters[name].default
        if wanted is inspect.Parameter.empty or (command.name, name) in OTHER_DEFAULTS:
            assert option.more.get("required") or not option.flag.startswith("-") or option.default is not None
        else:
            value = option.default if option.called is None else option.called(option.default)
            assert value == wanted, f"{command.name} {option.flag}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.function], ids=lambda c: c.name)
def test_every_argument_is_offered_or_has_a_reason_not_to_be(command):
    filled_in = {
        "model",
        "preprocess",
        "call",
        "out",
        "facts",
    }  # by MODEL, by the network's file, by the command itself
    missing = set(inspect.signature(function_of(command)).parameters) - set(named(command)) - filled_in
    assert missing == {name for function, name in NOT_OFFERED if function == command.function}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.function], ids=lambda c: c.name)
def test_the_shared_options_are_offered_wherever_the_function_has_them(command):
    parameters = inspect.signature(function_of(command)).parameters
    for option in (K, BATCH_SIZE, WORKERS, RULE, ALLOW_GRADIENT, QUIET):
        assert (option.to in parameters) == (option.to in named(command)), f"{command.name} {option.flag}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_that_takes_a_network_takes_its_weights_and_device(command):
    flags = {option.flag for option in command.options}
    assert command.name == "train" or ("model" in flags) == ({"--weights", "--device"} <= flags)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_help_has_an_example_that_is_understood(command, capsys):
    import shlex

    with pytest.raises(SystemExit, match="0"):
        parse([command.name, "--help"])
    assert f"example: {command.example}" in capsys.readouterr().out
    program, *words = shlex.split(command.example)
    assert program == "deconvviz" and parse(words).command == command.name


def test_every_public_function_is_a_command():
    functions = {n for n in deconvviz.__all__ if inspect.isfunction(getattr(deconvviz, n))}
    assert functions - {c.function for c in COMMANDS} == {
        "alone",  # for programs
        "compare_filters",  # filters --compare
        "randomize",  # for programs: what it returns is a network
    }
