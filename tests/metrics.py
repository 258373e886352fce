"""What the tests of the plugin `metrics` share: a scrape, read by Prometheus' own parsers."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families


class Scrape:
    """The samples of one scrape, as Prometheus' own parser reads them."""

    def __init__(self, text: str) -> None:
        parse = open_metrics_families if text.endswith("# EOF\n") else text_families
        self.samples = [sample for family in parse(text) for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """All series of this name that have these labels."""
        fits = (each for each in self.samples if each.name == name and labels.items() <= each.labels.items())
        return sum(each.value for each in fits)

    def values_of(self, label: str) -> set[str]:
        """Every value of a label."""
        return {sample.labels[label] for sample in self.samples if label in sample.labels}
