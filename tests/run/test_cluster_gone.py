"""What is left of a run when the head of its cluster is gone: one line, and no waiting for Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from operators.errors import ClusterGone, SinkError
from pipeline.run import ray_cluster
from pipeline.run.loop import rescued


@pytest.fixture
def shutdowns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each time that Ray would have been left; nothing of Ray is started."""
    calls: list[str] = []
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray_cluster.ray, "available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_cluster, "join", lambda address: None)
    monkeypatch.setattr(ray_cluster.atexit, "unregister", lambda function: None)
    monkeypatch.setattr(ray_cluster, "_is_abandoned", False)
    yield calls


@pytest.mark.parametrize("error", [None, SinkError("disk full"), KeyboardInterrupt(), ClusterGone("gone")])
def test_a_cluster_that_was_abandoned_is_not_left_whatever_ends_the_run(shutdowns: list[str], error):
    def run() -> None:
        with ray_cluster.joined("10.0.0.1:6379"):
            ray_cluster.abandon()
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert shutdowns == []


@pytest.mark.parametrize("error", [None, SinkError("disk full"), KeyboardInterrupt()])
def test_a_cluster_that_answers_is_left_once(shutdowns: list[str], error):
    try:
        with ray_cluster.joined("10.0.0.1:6379"):
            if error is not None:
                raise error
    except (SinkError, KeyboardInterrupt):
        pass
    assert shutdowns == ["shutdown"]


def test_where_the_last_labels_cannot_be_committed_both_are_said_in_one_line():
    def rescue(parts) -> None:
        raise SinkError("the disk is full")

    with pytest.raises(ClusterGone, match=r"^the head is gone; the last labels are not committed: the disk is full$"):
        rescued(ClusterGone("the head is gone"), rescue, [])
