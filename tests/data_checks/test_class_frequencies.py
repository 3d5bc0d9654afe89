"""Counting labels, and writing their shares where class weights come from, with everything else left as it was."""

import numpy as np
import pytest
import yaml

from common.base import config_files
from common.base.config import load_settings
from common.scans.formats.semantic_kitti import label_path
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from polar_distill import program
from stage1_dump_teacher.data_checks.class_frequencies import with_content
from tests.shared.reduced import DATASET, command, fail, succeed

SHARES = {0: 0.25, 10: 0.75, 300: 0.0}


@pytest.fixture
def description(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(DATASET.read_bytes())
    return path


def counted(sample_data, *sequences):
    paths = [path for sequence in sequences for path in (sample_data / "sequences" / sequence / "labels").iterdir()]
    raw = np.concatenate([np.fromfile(path, "<u4") & 0xFFFF for path in paths])
    return {int(value): float((raw == value).mean()) for value in np.unique(raw)}


def test_shares_are_written_and_everything_else_stays(sample_data, description):
    before = description.read_text()
    words = ("class-frequencies", "--data", sample_data, "--dataset", description)
    printed = succeed(command(program, *words))
    assert description.read_text() == before
    assert "written to `content`" in succeed(command(program, *words, "--write"))
    after = load_settings(LabelMap, description)
    expected = counted(sample_data, "00")
    assert {raw: share for raw, share in after.content.items() if share} == pytest.approx(expected)
    assert yaml.safe_load(printed[printed.index("content:") :])["content"] == pytest.approx(after.content)
    # Comments, order and all other lines are those of before.
    same = [line for line in description.read_text().splitlines() if line not in before.splitlines()]
    assert len(same) <= len(after.content)
    assert after.model_copy(update={"content": {}}) == load_settings(LabelMap, DATASET).model_copy(
        update={"content": {}}
    )
    assert description.read_text().count("#") == before.count("#")
    # A second time changes nothing.
    once = description.read_text()
    succeed(command(program, *words, "--write"))
    assert description.read_text() == once


def test_other_splits_are_counted_on_request(sample_data, description):
    words = ("--data", sample_data, "--dataset", description, "--split", "val", "--split", "00", "--write")
    succeed(command(program, "class-frequencies", *words))
    found = load_settings(LabelMap, description).content
    assert {raw: share for raw, share in found.items() if share} == pytest.approx(counted(sample_data, "00", "08"))
    assert "none of 1 scans has labels" in fail(
        command(program, "class-frequencies", "--data", sample_data, "--dataset", description, "--split", "test")
    )


def test_the_file_of_a_packaged_dataset_is_not_written(sample_data, tmp_path, monkeypatch):
    packaged = tmp_path / "installed" / "configs" / "datasets" / "semantic_kitti.yaml"
    packaged.parent.mkdir(parents=True)
    packaged.write_bytes(DATASET.read_bytes())
    monkeypatch.setattr(config_files, "PACKAGED", packaged.parents[1])
    words = ("class-frequencies", "--data", sample_data, "--write", "--dataset")
    # From another folder, and from the folder of the sources, where the name is also that of a file below it.
    for folder in (tmp_path, tmp_path / "installed"):
        monkeypatch.chdir(folder)
        message = fail(command(program, *words, "semantic_kitti"))
        assert "semantic_kitti.yaml, which is installed with the program. Copy it" in message
    monkeypatch.chdir(tmp_path)
    fail(command(program, *words, "configs/datasets/semantic_kitti.yaml"))
    assert packaged.read_bytes() == DATASET.read_bytes()
    # Names of the working folder's own files, and paths, say which file is meant.
    own = tmp_path / "configs" / "datasets" / "mine.yaml"
    own.parent.mkdir(parents=True)
    for path, name in ((own, "mine"), (packaged, packaged)):
        path.write_bytes(DATASET.read_bytes())
        succeed(command(program, *words, name))
        assert path.read_bytes() != DATASET.read_bytes()


def test_an_id_that_is_not_in_the_map_comes_with_its_line_and_does_not_stop_the_count(sample_data, description):
    path = label_path(sample_data, ScanId("00", "000000"))
    raw = np.fromfile(path, "<u4")
    raw[:300] = 7 | 3 << 16
    raw.tofile(path)
    words = ("class-frequencies", "--data", sample_data, "--dataset", description)
    output = succeed(command(program, *words, "--write"))
    assert "id 7 (10.000% of the points) is not in learning_map" in output
    assert "        7: 0 " in output
    text = description.read_text()
    description.write_text(text.replace("learning_map:\n", "learning_map:\n  7: 0    # added\n"))
    assert load_settings(LabelMap, description).content[7] == pytest.approx(0.1)
    assert "note: id" not in succeed(command(program, *words))


def test_a_file_that_does_not_say_shares_yet_gets_them(sample_data, description):
    head, _, tail = description.read_text().partition("content:")
    description.write_text(head + tail[tail.index("splits:") :])
    succeed(command(program, "class-frequencies", "--data", sample_data, "--dataset", description, "--write"))
    assert sum(load_settings(LabelMap, description).content.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "text",
    [
        "content:\n  0: 0.5  # nothing\n  10: 0.5\n",
        "content:\n    10: 1e-3\n    0: 0.5   # last, without a line break",
        "content: {0: 0.5, 10: 0.5}  # flow\n",
        "content: {0: 0.5,\n  10: 0.5}\nname: x\n",
        "content:\nname: x\n",
        "content: {}\n",
        "content:\n  0x0: 0.5\n  0xA: 0.5\n",
        "content: null\nname: x\n",
        "name: x",
        "content:\r\n  0: 0.5  # nothing\r\n\r\nname: x\r\n",
        "# head\ncontent:\n  # inside\n  0: 0.5\n  # before ten\n  10: 0.5\n\n# after\nname: x\n",
    ],
)
def test_any_form_of_the_block_is_replaced_by_text(text):
    changed = with_content(text, SHARES)
    assert yaml.safe_load(changed) == {"content": SHARES} | ({"name": "x"} if "name" in text else {})
    comments = [line[line.index("#") :] for line in text.splitlines() if "#" in line]
    assert all(comment in changed for comment in comments)
    assert ("\r\n" in changed) == ("\r\n" in text)
    assert with_content(changed, SHARES) == changed
