"""The scale that figures of a benchmark are put on: how slow a machine is beside another."""

from __future__ import annotations

from benchmarks.scale import Probe, Scale, known_probes


def test_the_factor_is_the_median_of_what_the_probes_say() -> None:
    """One probe that is far off moves the range that is printed, not the factor."""
    scale = Scale([_probe("a", 2.0, 2.0), _probe("b", 2.0, 3.0), _probe("c", 2.0, 20.0)])
    assert scale.factor == 1.5
    assert "1.50 (1.00 to 10.00)" in str(scale)


def test_a_round_measures_every_known_probe() -> None:
    """Each probe does its work and costs some time, and is named with its cost on the other machine and here."""
    probes = known_probes()
    scale = Scale(probes)
    scale.measure()
    assert [len(probe.samples) for probe in probes] == [1] * len(probes)
    assert all(probe.here_us > 0 for probe in probes)
    assert all(f"{probe.name} " in str(scale) and f" {probe.there_us} " in str(scale) for probe in probes)


def _probe(name: str, there_us: float, here_us: float) -> Probe:
    return Probe(name, lambda: None, there_us, [here_us])
