"""Which cameras are watched, what is wrong with them, and that nobody is told their passwords."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from operators.errors import ConfigError, StageError
from pipeline.config import Camera, load, load_cameras
from pipeline.live.cameras import camera_plans, cameras_of
from pipeline.live.summary import CameraSummary, LiveSummary
from pipeline.live.worker import CameraNews
from run_pipeline import main

ROOT = Path(__file__).resolve().parents[2]


def write_cameras(folder: Path, text: str) -> str:
    (folder / "cameras.yaml").write_text(text)
    return str(folder / "cameras.yaml")


def test_addresses_are_numbered_and_files_name_their_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.mp4").touch()
    file = write_cameras(tmp_path, "cameras: {door: {url: rtsp://a/, window_s: 2}, yard: {url: film.mp4}}")
    cameras = cameras_of(["rtsp://b/", file, "/dev/video0"])
    assert [(camera.name, camera.url) for camera in cameras] == [
        ("camera_1", "rtsp://b/"),
        ("door", "rtsp://a/"),
        ("yard", str(tmp_path / "film.mp4")),
        ("camera_4", "/dev/video0"),
    ]


def test_variables_that_hold_a_password_leave_the_environment_and_others_stay(tmp_path):
    environment = {"HOST": "10.0.0.7", "WORD": "s3cret", "LOGIN": "eve:s3cret", "EMPTY": "", "OTHER": "s3cret"}
    file = write_cameras(
        tmp_path, "cameras: {a: {url: 'rtsp://eve:${WORD}@${HOST}/${EMPTY}'}, b: {url: 'rtsp://${LOGIN}@${HOST}/'}}"
    )
    cameras = cameras_of([file], environment=environment)
    assert [camera.url for camera in cameras] == ["rtsp://eve:s3cret@10.0.0.7/", "rtsp://eve:s3cret@10.0.0.7/"]
    assert set(environment) == {"HOST", "EMPTY", "OTHER"}


@pytest.mark.parametrize(
    ("address", "gone"),
    [
        ("rtsp://eve:s3cret@10.0.0.7/stream1", {"WORD", "ADDRESS"}),
        ("rtsp://10.0.0.7/live?user=eve&password=s3cret1", {"WORD"}),
        ("rtsp://eve:abc@10.0.0.7/", {"SHORT"}),
        ("rtsp://eve@10.0.0.7/s3cret", set()),
    ],
)
def test_variables_that_the_shell_has_put_into_an_address_as_its_password_leave_the_environment(address, gone):
    before = {
        "WORD": "s3cret",
        "ADDRESS": "rtsp://eve:s3cret@10.0.0.7/stream1",
        "SHORT": "abc",
        "OMP_NUM_THREADS": "1",
        "LEVEL": "3",
        "USER": "eve",
        "HOST": "10.0.0.7",
        "EMPTY": "",
        "LONGER": "s3cret-else",
    }
    environment = dict(before)
    cameras_of([address], environment=environment)
    assert set(before) - set(environment) == gone


def test_an_address_that_ends_like_a_file_of_cameras_is_an_address():
    (camera,) = cameras_of(["rtsp://eve:s3cret@host/x.yaml"])
    assert (camera.name, camera.url) == ("camera_1", "rtsp://eve:s3cret@host/x.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gopher://eve:s3cret@host/"], "camera camera_1: gopher://eve:\\*\\*\\*@host/: gopher is no kind of camera"),
        (["twice.yaml", "twice.yaml"], "camera door is named twice"),
        (["film.mp4"], "camera camera_1: there is no file film.mp4; .* rtsp://film.mp4$"),
        (["file:///film.mp4"], "camera camera_1: there is no file file:///film.mp4$"),
        (["10.0.0.7/s"], "there is no file 10.0.0.7/s; an address begins with its scheme: rtsp://10.0.0.7/s$"),
        (["eve:s3cret@10.0.0.7/s"], r"scheme: rtsp://eve:\*\*\*@10.0.0.7/s$"),
    ],
)
def test_cameras_that_cannot_be_are_refused(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.yaml").write_text("cameras: {door: {url: rtsp://a/}}")
    with pytest.raises(ConfigError, match=words) as caught:
        cameras_of(arguments)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('cameras:\n  door: {url: "rtsp://eve:s3cret@h/"', "expected ',' or '}', .* in line 2, column 37"),
        ("cameras: {door: {url: !rtsp://eve:s3cret@h/ x}}", "could not determine a constructor"),
        ('{"rtsp://eve:s3cret@h/": {}, cameras: {door: {url: x}}}', r"unknown key rtsp://eve:\*\*\*@h/"),
        ('cameras: {"rtsp://eve:s3cret@h/": {url: x}}', r"camera name 'rtsp://eve:\*\*\*@h/' must be letters"),
        ('cameras: {door: {url: x, "rtsp://eve:s3cret@h/": 1}}', r"camera door: rtsp://eve:\*\*\*@h/: Extra inputs"),
        (
            "cameras:\n  door: {url: rtsp://a/}\n  yard: {url: rtsp://b/}\n  'door': {url: rtsp://c/}",
            "the key door, which line 2 has, is given again in line 4, column 3",
        ),
        ('cameras: {"rtsp://eve:s3cret@h/": 1, "rtsp://eve:s3cret@h/": 2}', r"key rtsp://eve:\*\*\*@h/, which line 1"),
        ("cameras: {yes: {url: x}, on: {url: y}}", "the key on, which line 1 has, is given again in line 1"),
        ('cameras: {door: {url: x, uri: "rtsp://eve:s3cret@h/"}}', "camera door: uri: Extra inputs"),
    ],
)
def test_what_is_wrong_with_a_file_of_cameras_is_told_without_its_passwords(text, words, tmp_path):
    with pytest.raises(ConfigError, match=words) as caught:
        cameras_of([write_cameras(tmp_path, text)])
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_setting_that_is_no_yaml_is_refused():
    with pytest.raises(ConfigError, match=r"--set stop.thresholds: not YAML: .* in line 1, column 6"):
        load("live", settings=["stop.thresholds=[0.9,"])


def test_a_config_with_a_key_twice_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("live: {window_s: 2}\nview:\n  crop_px: 32\n  crop_px: 64\n")
    with pytest.raises(ConfigError, match="the key crop_px, which line 3 has, is given again in line 4, column 3"):
        load(str(tmp_path / "a.yaml"))


def test_what_cameras_share_may_be_merged_in_and_overruled(tmp_path):
    lines = ["door: &d {url: x, window_s: 2}", "yard: &y {<<: *d, window_s: 3}", "roof: {<<: *y, window_s: 4}"]
    (tmp_path / "a.yaml").write_text("\n  ".join(["cameras:", *lines]))
    assert [camera.window_s for camera in load_cameras(tmp_path / "a.yaml")] == [2, 3, 4]


@pytest.mark.parametrize("seconds", ["0", "-3", "soon"])
def test_watching_for_no_time_is_refused(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["live", "rtsp://host/", "-o", "out", "--for", seconds])
    assert ended.value.code == 2 and "--for" in capsys.readouterr().err


def test_a_camera_has_its_own_settings_or_the_runs():
    config = load("live", settings=["live.analysis_fps=5", "live.watchdog_s=3"])
    cameras = [Camera(name="door", url="rtsp://a/", window_s=2, transport="udp"), Camera(name="yard", url="rtsp://b/")]
    door, yard = camera_plans(config, cameras)
    assert (door.window_s, door.stride_s, door.spec.transport, door.spec.analysis_fps) == (2.0, 1.0, "udp", 5.0)
    assert (yard.window_s, yard.stride_s, yard.spec.transport) == (4.0, 1.0, "tcp")
    assert door.spec.read_timeout_s == 3.0
    # They are analysed in turn; one alone need not wait for its turn.
    assert (door.spec.phase, yard.spec.phase) == (0.0, 0.5)
    assert camera_plans(config, cameras[:1])[0].spec.phase is None


def test_a_stride_shorter_than_a_tick_is_refused():
    camera = Camera(name="door", url="rtsp://a/", stride_s=0.2)
    with pytest.raises(ConfigError, match=r"camera door: stride_s=0.2 .* analysis_fps=4; give at least 0.25"):
        camera_plans(load("live"), [camera])


def test_passwords_among_the_arguments_are_overwritten_where_others_read_them():
    program = (
        "import sys; from pathlib import Path; from pipeline.commands.hidden_arguments import hide_arguments;"
        "hide_arguments();"
        "print(sys.argv[1:]); print(Path('/proc/self/cmdline').read_bytes().rstrip(b'\\0').split(b'\\0')[3:])"
    )
    given = ["rtsp://eve:s3cret@host/a", "-o", "out", "rtsp://bob:x@host/b"]
    environment = {**os.environ, "AFTER": "kept"}
    command = [sys.executable, "-c", program, *given]
    out = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, check=True, text=True).stdout
    shown = ["rtsp://eve:***@host/a", "-o", "out", "rtsp://bob:***@host/b"]
    first, second = out.splitlines()
    assert eval(first) == shown
    assert [argument.decode() for argument in eval(second)] == shown


def test_passwords_among_the_arguments_are_overwritten_before_anything_that_takes_long(tmp_path):
    # In the place of torch.
    (tmp_path / "torch.py").write_text("raise SystemExit(open('/proc/self/cmdline').read())")
    command = [sys.executable, ROOT / "run_pipeline.py", "live", "rtsp://eve:s3cret@host/a", "-o", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(command, capture_output=True, env=environment, text=True).stderr
    assert "rtsp://eve:***@host/a" in shown and "s3cret" not in shown


@pytest.mark.parametrize(
    ("arguments", "fault", "code"),
    [
        (["doctor", "rtsp://eve:s3cret@host/a"], None, 2),
        (["live", "rtsp://host/", "-o", "out", "--for", "rtsp://eve:s3cret@host/a"], None, 2),
        (["live", "rtsp://host/", "-o", "out"], StageError("lost rtsp://eve:s3cret@host/a"), 1),
        (["live", "rtsp://host/", "-o", "out"], ValueError("odd: rtsp://eve:s3cret@host/a"), 1),
    ],
)
def test_whatever_ends_a_command_is_told_without_a_password(arguments, fault, code, monkeypatch, capsys):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr("pipeline.commands.options.load_config", fail)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr().err
    assert ended.value.code == code and "rtsp://eve:***@host/a" in told and "s3cret" not in told


@pytest.mark.parametrize("address", ["page.mp4", "rtsp://eve:s3cret@host/a"])
@pytest.mark.parametrize("num_misses", [0, 2])
def test_a_camera_that_was_never_live_is_reported_and_is_a_failure(address, num_misses, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.mp4").touch()
    gone = CameraSummary(news=CameraNews(num_misses=num_misses, last_error="nobody there"))
    summary = LiveSummary({"camera_1": gone}, wall_s=3.0)
    monkeypatch.setattr("pipeline.live.watch.watch_cameras", lambda *_, **__: summary)
    with pytest.raises(SystemExit) as ended:
        main(["live", address, "-o", "out", "-q", "--for", "3"])
    assert ended.value.code == 3
    assert "camera_1 has never been live: nobody there\n" in capsys.readouterr().err
