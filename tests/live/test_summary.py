"""What the summary of a live run says of its cameras."""

from __future__ import annotations

from pipeline.live.summary import CameraSummary, LiveSummary


def test_latencies_are_quantiles_of_the_newest_labels():
    summary = LiveSummary({"door": CameraSummary(), "yard": CameraSummary()})
    assert summary.latency_s(0.95) is None
    summary.cameras["door"].latencies_s.extend(n / 100 for n in range(100))
    summary.cameras["yard"].latencies_s.extend([5.0] * 100)
    assert (summary.latency_s(0.95, "door"), summary.latency_s(0.25), summary.latency_s(0.5)) == (0.95, 0.5, 5.0)
    assert summary.to_dict()["cameras"]["door"]["latency_s"] == {"p50": 0.5, "p95": 0.95, "p99": 0.99}
