"""Settings from YAML files and overrides: strict, typed, and clear about what is wrong."""

import pytest
from pydantic import Field

from common.base.config import Settings, load_settings, parse_settings, read_yaml, write_yaml
from common.base.errors import SettingsError
from common.scans.sequence_names import Names, Sequences


class Optimiser(Settings):
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)


class Experiment(Settings):
    name: str
    epochs: int = Field(40, gt=0)
    optimiser: Optimiser = Optimiser()
    sequences: list[str] = ["train"]
    teacher: str | None = None
    warm_up: Optimiser | None = None


@pytest.fixture
def write(tmp_path):
    def write_text(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_text


def refusal(path, *overrides) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(Experiment, path, overrides)
    return caught.value.message


def test_defaults_are_filled_in_and_settings_are_frozen(write):
    settings = load_settings(Experiment, write("a.yaml", "name: a\noptimiser:\n  learning_rate: 0.1\n"))
    assert settings == Experiment(name="a", optimiser=Optimiser(learning_rate=0.1))
    with pytest.raises(ValueError, match="frozen"):
        settings.epochs = 3


def test_unknown_key_names_file_key_and_nearest(write):
    path = write("a.yaml", "name: a\nepoch: 3\n")
    message = refusal(path)
    assert str(path) in message
    assert "epoch: unknown key" in message
    assert "'epochs'" in message


@pytest.mark.parametrize("section", ["optimiser", "warm_up"])
def test_unknown_nested_key_names_the_nearest_of_its_section(write, section):
    message = refusal(write("a.yaml", f"name: a\n{section}:\n  learning_rat: 3\n"))
    assert f"{section}.learning_rat" in message
    assert "'learning_rate'" in message


def test_unknown_key_without_a_near_one_lists_the_known(write):
    message = refusal(write("a.yaml", "name: a\nzzz: 3\n"))
    assert "known keys here: name, epochs, optimiser" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name: a\nepochs: many\n", "epochs"),
        ("name: a\nepochs: 1.5\n", "epochs"),
        ("name: a\nepochs: 0\n", "epochs"),
        ("name: a\noptimiser:\n  betas: [0.9]\n", "optimiser.betas"),
        ("name: a\noptimiser: 3\n", "optimiser"),
        ("epochs: 3\n", "name"),
    ],
)
def test_ill_typed_or_missing_value_names_the_key(write, text, key):
    assert f"  {key}" in refusal(write("a.yaml", text))


def test_every_problem_is_listed_at_once(write):
    message = refusal(write("a.yaml", "epochs: many\nepoch: 3\n"))
    assert "name: " in message
    assert "epochs: " in message
    assert "epoch: unknown key" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("epochs=3", {"epochs": 3}),
        ("optimiser.learning_rate=1e-3", {"optimiser": Optimiser(learning_rate=0.001)}),
        ("optimiser.learning_rate=2", {"optimiser": Optimiser(learning_rate=2.0)}),
        ("optimiser.betas=[0.5, .9e0]", {"optimiser": Optimiser(betas=(0.5, 0.9))}),
        ("sequences=['00', '01']", {"sequences": ["00", "01"]}),
        ("teacher=null", {"teacher": None}),
        ("teacher=a=b", {"teacher": "a=b"}),
        ("warm_up.learning_rate=.1", {"warm_up": Optimiser(learning_rate=0.1)}),
        ("name=b", {"name": "b"}),
    ],
)
def test_override(write, override, expected):
    path = write("a.yaml", "name: a\nwarm_up:\n")
    assert load_settings(Experiment, path, [override]) == Experiment(**({"name": "a"} | expected))


def test_later_override_wins(write):
    assert load_settings(Experiment, write("a.yaml", "name: a"), ["epochs=3", "epochs=4"]).epochs == 4


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("epochs", "key=value"),
        ("epochs=[1", "not valid YAML"),
        ("name.first=x", "'name'"),
        ("optimizer.learning_rate=1", "'optimiser'"),
    ],
)
def test_bad_override_is_named(write, override, named):
    message = refusal(write("a.yaml", "name: a"), override)
    assert named in message
    assert override.partition("=")[0].partition(".")[0] in message


def test_extends_merges_deeply_and_relative_to_the_file(write):
    write("base/base.yaml", "name: base\nepochs: 9\noptimiser:\n  learning_rate: 0.5\n  betas: [0.1, 0.2]\n")
    write("middle.yaml", "extends: base/base.yaml\nsequences: ['08']\n")
    path = write("top/top.yaml", "extends: ../middle.yaml\nname: top\noptimiser:\n  learning_rate: 0.25\n")
    settings = load_settings(Experiment, path)
    assert settings == Experiment(
        name="top", epochs=9, sequences=["08"], optimiser=Optimiser(learning_rate=0.25, betas=(0.1, 0.2))
    )


def test_missing_base_is_named(write):
    message = refusal(write("a.yaml", "extends: nowhere.yaml\nname: a\n"))
    assert "nowhere.yaml" in message


@pytest.mark.parametrize(("text", "named"), [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "holds list")])
def test_file_that_is_no_mapping_is_named(write, text, named):
    path = write("a.yaml", text)
    message = refusal(path)
    assert str(path) in message
    assert named in message


def test_missing_file_is_named(tmp_path):
    assert str(tmp_path / "absent.yaml") in refusal(tmp_path / "absent.yaml")


def test_written_settings_read_back(tmp_path):
    settings = Experiment(name="ünnamed", epochs=2, optimiser=Optimiser(learning_rate=1e-9), teacher="x")
    write_yaml(settings, tmp_path / "resolved.yaml")
    assert load_settings(Experiment, tmp_path / "resolved.yaml") == settings


def test_yaml_cannot_run_code(write, tmp_path):
    path = write("a.yaml", f"name: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n")
    with pytest.raises(SettingsError):
        read_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_settings_from_memory_name_their_source():
    with pytest.raises(SettingsError, match=r"manifest\.json"):
        parse_settings(Experiment, {"name": 3}, "manifest.json")


def test_extends_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(SettingsError, match="extends itself"):
        read_yaml(tmp_path / "a.yaml")


def test_extends_must_name_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]\n")
    with pytest.raises(SettingsError, match="extends names"):
        read_yaml(tmp_path / "a.yaml")


# --- names of sequences, and text that is not settings ---


class Selection(Settings):
    train: Names = ["train"]
    labels: Names | None = Field(None, min_length=1)
    folders: Sequences = []
    steps: int = 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[00,01]", ["00", "01"]),
        ("[00, 07, 08, 09, 10, 11, 21]", ["00", "07", "08", "09", "10", "11", "21"]),
        ("['00', val]", ["00", "val"]),
        ("[8, 10]", ["08", "10"]),
        ("[010]", ["010"]),
        ("[]", []),
    ],
)
def test_sequences_need_no_quotes(write, text, names):
    for key in ("train", "folders"):
        assert getattr(load_settings(Selection, write("a.yaml", f"{key}: {text}")), key) == names
        assert getattr(load_settings(Selection, write("a.yaml", ""), [f"{key}={text}"]), key) == names
    if names:
        assert load_settings(Selection, write("a.yaml", f"labels: {text}")).labels == names


@pytest.mark.parametrize("key", ["train", "labels", "folders"])
@pytest.mark.parametrize("text", ["[on]", "[1.5]", "[-1]", "[null]", "[[00]]", "08", "val", "{00: 1}", "[2024-01-01]"])
def test_what_is_no_name_is_refused_with_the_words_to_type(write, key, text):
    with pytest.raises(SettingsError) as caught:
        load_settings(Selection, write("a.yaml", ""), [f"{key}={text}"])
    assert f"{key}: " in caught.value.message
    assert "['00', 'val']" in caught.value.message


def test_numbers_are_decimal(write):
    assert load_settings(Selection, write("a.yaml", "steps: 010")).steps == 10
    assert load_settings(
        Experiment, write("a.yaml", "name: a\noptimiser: {learning_rate: 1e-3}")
    ).optimiser == Optimiser(learning_rate=1e-3)
    with pytest.raises(SettingsError, match="'1:30'"):
        load_settings(Selection, write("a.yaml", "steps: 1:30"))


@pytest.mark.parametrize("text", ["epochs: 3\nepochs: 4", "nested: {low: 1, low: 2}", "numbers: {1: a, 1: b}"])
def test_a_key_that_is_there_twice_is_refused(write, text):
    with pytest.raises(SettingsError, match=r"is there twice; remove one"):
        read_yaml(write("twice.yaml", text))


def test_what_is_merged_may_be_overridden(write):
    path = write("merged.yaml", "base: &base {low: 1, high: 2}\nover: {<<: *base, low: 3}")
    assert read_yaml(path)["over"] == {"low": 3, "high": 2}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, *a]",
        "a: &a {b: *a}",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{row}: &a{row} [{', '.join([f'*a{row - 1}'] * 10)}]\n" for row in range(1, 9)),
    ],
)
def test_values_that_would_take_all_memory_are_refused(write, text):
    with pytest.raises(SettingsError, match="more than 100000 values, or one that holds itself"):
        read_yaml(write("bomb.yaml", text))


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    for content in ("name: Straße\n".encode("latin-1"), "name: a\n".encode("utf-16"), bytes(range(256))):
        (tmp_path / "a.yaml").write_bytes(content)
        assert f"{tmp_path / 'a.yaml'}: not text in UTF-8" in refusal(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000, "- " * 20_000])
def test_deep_nesting_is_refused(write, text):
    path = write("a.yaml", f"name: {text}\n")
    assert f"{path}: " in refusal(path)
    assert "'name=" in refusal(write("b.yaml", "name: a\n"), f"name={text}")


@pytest.mark.parametrize("text", ["name: 2024-99-99", "name: \x00", "name: !!python/object:os.system {}", "a: 1: 2"])
def test_what_is_not_yaml_is_refused_naming_the_file(write, text):
    path = write("a.yaml", text + "\n")
    assert str(path) in refusal(path)


def test_messages_stay_short_and_print_nothing_raw(write):
    layers = "\n".join(f"l{depth}: &l{depth} [{', '.join([f'*l{depth - 1}'] * 9)}]" for depth in range(1, 30))
    message = refusal(write("a.yaml", f"l0: &l0 [x]\n{layers}\nname: *l29\n"))
    assert len(message) < 5000
    assert "\x1b" not in refusal(write("a.yaml", 'name: a\n"\\e[31m": 1\n'))


def test_an_override_that_finds_no_place_names_the_file(write):
    path = write("a.yaml", "name: a\noptimiser: Adam\n")
    assert f"{path}: 'optimiser.learning_rate=1'" in refusal(path, "optimiser.learning_rate=1")
