"""Tests of chips.py."""

import pytest

from bert_jax.runtime import chips


def test_published_peaks_of_a_device():
  peaks = {chip.name: chip.peak_flops / 1e12 for chip in chips.CHIPS}
  assert peaks == {
    "v3": 123, "v4": 275, "v5e": 197, "v5p": 459, "v6e": 918, "tpu7x": 2307,
  }  # fmt: skip
  assert chips.PEAK_FLOPS["TPU v5 lite"] == 197e12
  assert chips.PEAK_FLOPS["TPU7x"] == 2307e12 / 2  # a core each
  assert chips.PEAK_FLOPS["TPU v5p"] == 459e12


@pytest.mark.parametrize(
  ("name", "ghz"),
  [("v3", 0.94), ("v4", 1.05), ("v5e", 1.5), ("v5p", 1.75)],
)
def test_the_peak_and_the_matrix_units_give_the_published_clock(name, ghz):
  chip = chips.parse_topology(
    f"{name}:{'2x2x1' if name in ('v4', 'v5p') else '2x2'}"
  ).chip
  assert chip.clock_hz / 1e9 == pytest.approx(ghz, rel=0.005)


def test_two_devices_of_a_chip_share_it_at_one_clock():
  chip = chips.parse_topology("v4:2x2x1").chip
  half = chip.per_device(2)
  assert half.peak_flops == chip.peak_flops / 2
  assert half.hbm_bytes == chip.hbm_bytes // 2
  assert half.clock_hz == chip.clock_hz
  assert 2 * half.vector_ops == chip.vector_ops
  assert chip.per_device(1) == chip


def test_links():
  assert chips.parse_topology("v5e:4x4").chip.torus_dims == 2
  assert chips.parse_topology("v5p:4x4x4").chip.torus_dims == 3


def test_every_known_topology_is_read():
  for chip in chips.CHIPS:
    for name in chip.topologies:
      assert chips.parse_topology(name).chip is chip


@pytest.mark.parametrize(
  ("slice", "topology"),
  [
    ("v5litepod-16", "v5e:4x4"),
    ("v5e-16", "v5e:4x4"),
    ("v5litepod-8", "v5e:2x4"),
    ("v5litepod-1", "v5e:1x1"),
    ("v5litepod-128", "v5e:8x16"),
    ("v6e-256", "v6e:16x16"),
    ("v4-8", "v4:2x2x1"),
    ("v4-16", "v4:2x2x2"),
    ("v4-32", "v4:2x2x4"),
    ("v4-64", "v4:2x4x4"),
    ("v4-128", "v4:4x4x4"),
    ("v5p-256", "v5p:4x4x8"),
    ("v3-8", "v3:2x2"),
  ],
)
def test_the_name_of_a_slice_stands_for_its_shape(slice, topology):
  assert chips.parse_topology(slice) == chips.parse_topology(topology)


@pytest.mark.parametrize("name", ["v5e-12", "v4-7", "v5e-", "v5e-0", "v7-8"])
def test_a_slice_without_a_known_shape_is_refused(name):
  with pytest.raises(ValueError, match=f"topology='{name}'.*v5e:2x2"):
    chips.parse_topology(name)


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:4", "v5e:0x4", "4x4"])
def test_an_unknown_topology_lists_those_there_are(name):
  with pytest.raises(ValueError, match=r"v5e:2x2.*v5p:4x4x4"):
    chips.parse_topology(name)


def test_a_shape_of_other_dimensions_is_refused():
  with pytest.raises(ValueError, match="the network of v5p has 3"):
    chips.parse_topology("v5p:4x4")
