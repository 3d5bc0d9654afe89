"""The command that a dump names as the next one fits what was dumped."""

import pytest

from common.base.text import command_line
from stage1_dump_teacher.command_options import load_dump_settings
from stage1_dump_teacher.dump_command import training_words

GRID = "grid={volume: cylinder3d, shape: [480, 360, 32]}"


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("cylinder3d", [], ["full"]),
        ("cylinder3d", ["layers=[up0e]"], ["logit"]),
        ("cylinder3d", ["dataset=semantic_poss"], ["full", "--set", "dataset=semantic_poss"]),
        ("cylinder3d_nuscenes", [], ["full_nuscenes", "--set", "dataset=nuscenes"]),
        ("cylinder3d_official", [], ["full", "--set", GRID]),
        ("pvkd", [], ["pvkd"]),
        ("cylinder3d", ["splits=[00, val]"], ["full", "--set", 'train=["00"]']),
    ],
)
def test_it_takes_the_experiment_dataset_grid_and_scans_of_the_dump(config, overrides, expected):
    settings = load_dump_settings(config, overrides)
    assert training_words(settings, settings.layers) == ["--experiment", *expected]


def test_there_is_none_where_nothing_was_dumped_to_train_on():
    settings = load_dump_settings("cylinder3d", ["splits=[val]"])
    assert training_words(settings, settings.layers) == []


def test_a_teacher_without_layers_is_learnt_from_by_its_logits():
    assert training_words(load_dump_settings("cylinder3d", []), ()) == ["--experiment", "logit"]


def test_a_command_can_be_pasted_into_a_shell():
    assert command_line("evaluate", "--data", "my scans") == "polar-distill evaluate --data 'my scans'"
