"""What is wrong with settings is said in words of settings, not of pydantic."""

import pytest
from pydantic import Field

from common.base.config import Settings, load_settings
from common.base.errors import SettingsError
from common.scans.dataset import GridSettings
from stage1_dump_teacher.settings import DumpSettings


class Optimiser(Settings):
    betas: tuple[float, float] = (0.9, 0.999)


class Experiment(Settings):
    name: str
    epochs: int = Field(40, gt=0)
    optimiser: Optimiser = Optimiser()
    teacher: str | None = None


def refusal(kind, path, *overrides) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(kind, path, overrides)
    return caught.value.message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=many", "epochs: must be a whole number (got 'many')"),
        ("epochs=0", "epochs: must be greater than 0 (got 0)"),
        ("optimiser=3", "optimiser: must have keys of its own: betas (got 3)"),
        ("optimiser.betas=0.9", "optimiser.betas: must be a list, written as [a, b, c] (got 0.9)"),
        ("optimiser.betas=[0.9, 0.9, 0.9]", "optimiser.betas: must have at most 2 items, not 3 (got "),
        ("optimiser.betas=[0.9]", "optimiser.betas.1: is missing (got [0.9])"),
        ("teacher=3", "teacher: must be text (got 3)"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_settings(tmp_path, override, said):
    (tmp_path / "a.yaml").write_text("name: a\n")
    message = refusal(Experiment, tmp_path / "a.yaml", override)
    assert said in message
    assert "a.yaml, changed by --set: these settings cannot be used:" in message


def test_of_a_value_of_several_kinds_the_key_alone_is_named(tmp_path):
    (tmp_path / "grid.yaml").write_text("volume: {rho: 3, z: [1]}\n")
    lines = refusal(GridSettings, tmp_path / "grid.yaml").splitlines()[1:]
    assert [line.partition(" (")[0] for line in lines] == [
        "  volume.rho: must be a list, written as [a, b, c]",
        "  volume.z.1: is missing",
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["profile=[a]"], "profile: must be 'full', 'train' or 'custom' (got ['a'])"),
        (["profile=small"], "profile: must be 'full', 'train' or 'custom' (got 'small')"),
        (["encoding=zstd"], "encoding: must have keys of its own: pillar_features, "),
        (["encoding.steps=a"], "encoding.steps: must be a whole number (got 'a')"),
    ],
)
def test_a_profile_that_cannot_be_filled_in_is_the_only_problem(overrides, said):
    (line,) = refusal(DumpSettings, "cylinder3d", *overrides).splitlines()[1:]
    assert said in line
