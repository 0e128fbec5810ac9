"""Whether memory is flat: the peak of the whole process tree for few clips and for many. A proof of its own:

    python -m pipeline.bench.memory --clips 200 --clips 2000 --json benchmarks/memory.json

Memory is the proportional set size of every process that the run started, so that what they share counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from pipeline.bench.machine_use import marked_pids, memory_bytes
from pipeline.synthetic.archive import generate
from pipeline.synthetic.video_plans import SynthSettings

ROOT = Path(__file__).resolve().parents[2]
_MARK = "SACCADE_MEMORY"


def measure(archive: Path, folder: Path, num_clips: int) -> dict[str, float]:
    """Labels num_clips paths, which are links to the archive's files, and watches the memory of all processes."""
    links = folder / f"links_{num_clips}"
    links.mkdir()
    videos = sorted((archive / "videos").rglob("*.mp4"))
    for number in range(num_clips):
        (links / f"clip_{number:06d}.mp4").symlink_to(videos[number % len(videos)])
    mark = uuid.uuid4().hex
    program, out = str(ROOT / "run_pipeline.py"), str(folder / f"out_{num_clips}")
    process = subprocess.Popen(
        [sys.executable, program, "label", str(links), "-o", out, "--config", "demo", "-q", "--json"],
        env={**os.environ, _MARK: mark},
        stdout=subprocess.PIPE,
    )
    begun_s = time.monotonic()
    samples: list[tuple[float, int]] = []
    while process.poll() is None:
        samples.append((time.monotonic() - begun_s, memory_bytes(marked_pids(f"{_MARK}={mark}"))))
        time.sleep(0.5)
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    if process.returncode or summary["clips"] != num_clips:
        raise SystemExit(f"the run of {num_clips} clips ended with {process.returncode}: {summary}")
    return {
        "clips": num_clips,
        "peak_mib": max(size for _, size in samples) / 2**20,
        "wall_s": time.monotonic() - begun_s,
        "clips_per_s": summary["steady_clips_per_s"],
        "samples": len(samples),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, action="append", help="size of a run; repeatable")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = options.clips or [200, 2000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "archive", SynthSettings(videos=40, shares=(0, 0, 1), seed=11), workers=2)
        runs = []
        for num_clips in sizes:
            runs.append(measure(folder / "archive", folder, num_clips))
            print(json.dumps(runs[-1]), flush=True)
    ratio = runs[-1]["peak_mib"] / runs[0]["peak_mib"]
    print(f"peak of {sizes[-1]} clips over that of {sizes[0]}: {ratio:.3f}")
    if options.json:
        found = {"runs": runs, "ratio": ratio, "goal": 1.15, "met": ratio <= 1.15}
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
