"""The plain loop that everything is compared with."""

from __future__ import annotations

import pytest

from pipeline import config as configuration
from pipeline.bench.plain import DECODERS, fastest_decoder, plain_seconds
from pipeline.bench.rivals import Files
from pipeline.plan.resolve import resolve
from tests.bench.samples import MACHINE


def test_the_plain_loop_labels_a_video(files: Files, small: configuration.Config) -> None:
    plan = resolve(small, MACHINE)
    for decoder in ("OpenCV", "PyAV"):
        arguments = plan.config.model_dump_json(), plan.model_id, [str(files.short[0])], 1, decoder
        assert plain_seconds(*arguments) > 0


def test_the_decoder_of_the_plain_loop_is_the_best_of_several_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, read = 0.0, 0
    tries = {"OpenCV": iter([9.0, 2.0, 2.0]), "PyAV": iter([3.0, 3.0, 3.0])}

    def decoder(name: str):  # type: ignore[no-untyped-def]
        def decode(path: str, num_frames: int):  # type: ignore[no-untyped-def]
            nonlocal now_s, read
            seconds = next(tries[name])
            for number in range(num_frames):
                now_s, read = now_s + seconds / num_frames, read + 1
                yield number

        return decode

    for name in DECODERS:
        monkeypatch.setitem(DECODERS, name, decoder(name))
    monkeypatch.setattr("pipeline.bench.plain.time.perf_counter", lambda: now_s)
    # The first try was cold. A quarter of the frames tells the time of all.
    assert fastest_decoder("a.mp4", 16, share=0.25) == ("OpenCV", pytest.approx(2.0))
    assert read == 3 * 2 * 4
