"""Coarser steps of `int8_channel`: smaller files, part of the identity, and never finer again."""

import numpy as np
import pytest
import torch

from common.base.config import load_settings
from common.base.errors import SettingsError, StoreError
from common.targets.store import TargetEncoding, TargetStore
from common.targets.store.conversion import KeptArrays, converted_identity, converted_scan, kept_arrays
from common.targets.store.encoding import encode
from common.targets.store.members import read_members
from common.targets.store.scan_file import scan_file_bytes
from stage1_dump_teacher.settings import DumpSettings
from tests.shared.memory_storage import MemoryStorage
from tests.targets.store.made_up_targets import (
    CHANNELS,
    GRID,
    SCANS,
    encoding_of,
    fill,
    identity,
    targets_at,
    targets_of,
    write_one,
)

SCAN = SCANS[0]
BEFORE = "d539c71411155f30a56bbe636b59a12dbf8fe16feaf212069d2d94a476d44626"
"""Hash of the identity of `int8_channel` as it was before there was the setting."""


def with_steps(steps):
    """All features in `int8_channel` with so many steps."""
    return encoding_of("int8_channel").model_copy(update={"steps": steps})


def of_steps(steps):
    """Identity of a store with so many steps."""
    return identity("int8_channel").model_copy(update={"encoding": with_steps(steps)})


def store_with(steps):
    """A store of one scan."""
    store = TargetStore.create_or_resume(MemoryStorage(), of_steps(steps), {})
    write_one(store, SCAN, 0)
    return store


def test_stores_of_before_keep_their_identity():
    plain = identity("int8_channel")
    assert plain.hash == BEFORE
    assert "steps" not in plain.model_dump(mode="json")["encoding"]
    assert of_steps(16).hash == BEFORE
    assert of_steps(3).hash != BEFORE
    assert fill(MemoryStorage(), "int8_channel").identity == plain


def test_a_manifest_keeps_the_steps():
    store = store_with(3)
    assert TargetStore.open(store.storage).identity.encoding.steps == 3
    with pytest.raises(StoreError, match=r"encoding\.steps: the store has 3, this run has 16"):
        TargetStore.create_or_resume(store.storage, identity("int8_channel"), {})
    with pytest.raises(StoreError, match=r"encoding\.steps: the store has 16, this run has 3"):
        TargetStore.create_or_resume(store_with(16).storage, store.identity, {})


@pytest.mark.parametrize("steps", [0, 128, 2.5])
def test_steps_that_mean_nothing_are_refused(steps):
    with pytest.raises((SettingsError, ValueError)):
        TargetEncoding(steps=steps)


def test_a_step_is_its_share_of_a_channels_deviation():
    values = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    for steps in (1, 3, 16):
        scale = encode(values, "int8_channel", "a", steps)[".channel_scale"]
        np.testing.assert_allclose(scale, values.numpy().std(axis=0) / steps, rtol=1e-5)


def test_fewer_steps_make_smaller_files_and_larger_errors():
    targets = targets_at(np.arange(0, 1536, 2), GRID, np.random.default_rng(0))
    sizes, errors = [], []
    for steps in (16, 8, 3):
        data = scan_file_bytes(targets, GRID.shape, with_steps(steps), {})
        sizes.append(len(data))
        members = read_members(data)
        codes = members.array("up0e.pillar_features").astype(np.float32)
        scale = members.array("up0e.pillar_features.channel_scale")
        exact = targets.layers["up0e"].features.numpy()
        errors.append(float(np.abs(codes * scale - exact).max() / exact.std()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == pytest.approx([0.5 / 16, 0.5 / 8, 0.5 / 3], rel=0.2)


BY_LAYER = {"up0e": 3, "others": 16}


def test_layers_have_steps_of_their_own():
    store = store_with(BY_LAYER)
    assert TargetStore.open(store.storage).identity == store.identity != of_steps(16)
    with pytest.raises(StoreError, match=r"encoding\.steps: the store has .*'up0e': 3.*, this run has 3"):
        TargetStore.create_or_resume(store.storage, of_steps(3), {})
    members = read_members(store.storage.read(store.name(SCAN, 0)))
    for name, layer in targets_of(SCAN, 0).layers.items():
        scale = members.array(f"{name}.pillar_features.channel_scale")
        np.testing.assert_allclose(scale, layer.features.numpy().std(axis=0) / (3 if name == "up0e" else 16), rtol=1e-3)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("{up0e: 3}", "need one for all that are not named"),
        ("{up0e: 200, others: 2}", "less than or equal to 127"),
        ("{up0: 3, others: 2}", "no layer 'up0' is kept; the layers are down1c, down3c, up4e, up2e, up0e"),
    ],
)
def test_steps_by_layer_that_mean_nothing_are_refused(steps, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(DumpSettings, "cylinder3d", ["profile=train", f"encoding.steps={steps}"])


def converted(store, **changes):
    """One scan file of a store in another encoding, and its identity."""
    values = kept_arrays(store.identity)
    kept = KeptArrays.model_validate(values | {"encoding": values["encoding"] | changes})
    target = converted_identity(store.identity, kept)
    copy = TargetStore(store.storage, target, store.signed)
    return converted_scan(store, copy, SCAN, 0), target


def test_converting_to_fewer_steps_encodes_anew():
    store = store_with(16)
    data, target = converted(store, steps=3)
    assert target.encoding.steps == 3
    members, before = read_members(data), read_members(store.storage.read(store.name(SCAN, 0)))
    exact = targets_of(SCAN, 0).layers["up0e"].features.numpy()
    scale = members.array("up0e.pillar_features.channel_scale")
    np.testing.assert_allclose(scale, exact.std(axis=0) / 3, rtol=0.02)
    assert members.array("up0e.pillar_features").std() < before.array("up0e.pillar_features").std() / 4


def test_converting_with_the_same_steps_copies_numbers():
    store = store_with(3)
    data, _ = converted(store, codec="none")
    members, before = read_members(data), read_members(store.storage.read(store.name(SCAN, 0)))
    for name in (f"{layer}.pillar_features{suffix}" for layer in CHANNELS for suffix in ("", ".channel_scale")):
        np.testing.assert_array_equal(members.array(name), before.array(name))


def test_converting_encodes_only_layers_anew_whose_steps_change():
    store = store_with(16)
    data, _ = converted(store, steps=BY_LAYER)
    members, before = read_members(data), read_members(store.storage.read(store.name(SCAN, 0)))
    for layer in CHANNELS:
        name = f"{layer}.pillar_features"
        assert np.array_equal(members.array(name), before.array(name)) == (layer != "up0e")


def test_converting_never_gains_steps():
    with pytest.raises(StoreError, match=r"pillar_features of down1c: stored in 3 steps; more cannot restore"):
        converted(store_with(3), steps=16)
    with pytest.raises(StoreError, match=r"pillar_features of up0e: stored in 3 steps; more cannot restore"):
        converted(store_with(BY_LAYER), steps=16)


def test_the_profile_for_training_is_coarse_and_the_finer_step_a_setting():
    def encoding(*overrides):
        return load_settings(DumpSettings, "cylinder3d", ["profile=train", *overrides]).encoding

    assert encoding().steps == {"up0e": 3, "others": 2}
    assert encoding("layers=[down1c]").steps_of("down1c") == 2
    before = TargetEncoding(pillar_features="int8_channel", voxel_features="int8_channel", logits="int8_row")
    assert encoding("encoding.steps=16") == before
