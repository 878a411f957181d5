"""Run the host tests against several ComfyUI versions: `python run.py hosts [VERSION ...] [PYTEST ARGUMENTS]`.

All versions share one environment. What a version pins otherwise (its page, its templates, its kernels) is installed
into a folder of its own, which goes before the environment's packages. Everything lies in `.host/matrix/`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

from pack.run import HOST, ROOT, TORCH, Release, SetupError, fingerprint, get_host, pip, say
from pack.tests.host_server import HostError, HostServer

RELEASES = (
    Release("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    Release("0.18.2", "1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    Release("0.24.1", "2.3.1", "dd4a132c219a59c2321158f0a677f159134e004e85888415818c1b217ce93813"),
    Release("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    HOST,
)


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds to boot are None when the server did not start."""

    version: str
    boot_seconds: float | None
    passed: int
    failed: int
    skipped: int


def overlay(host: Path, folder: Path, log: Path) -> Path:
    """Install into `folder` what this ComfyUI pins otherwise than the running environment; return the folder."""
    stamp = folder / "noise-search.json"
    wanted = fingerprint(sys.version, *TORCH, (host / "requirements.txt").read_text(encoding="utf-8"))
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        arguments = ["--requirement", str(host / "requirements.txt"), "--report", str(report)]
        pip(Path(sys.executable), ["install", "--dry-run", *TORCH, *arguments], "comparing requirements", log)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    names = [f"{item['metadata']['name']}=={item['metadata']['version']}" for item in found]
    if names:
        arguments = ["install", "--no-deps", "--upgrade", "--target", str(folder), *names]
        pip(Path(sys.executable), arguments, f"installing {len(names)} packages that differ", log)
    stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return folder


def boot_seconds(host: Path, environment: dict[str, str]) -> float | None:
    """Return how long this ComfyUI takes to start with the pack and list its nodes, None (said why) if it does not."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        started = time.monotonic()
        try:
            with HostServer(host, Path(base), environment=environment) as server:
                seconds = time.monotonic() - started
                ours = [name for name in server.object_info() if name.startswith("NoiseSearch")]
                # A pack whose list of nodes breaks in the middle keeps the nodes before it.
                broken = [line for line in server.log().splitlines() if "comfy_entrypoint" in line or "FAILED" in line]
                say(f"{len(ours)} nodes of this pack are listed" + "".join(f"\n{line}" for line in broken))
                return seconds if ours and not broken else None
        except HostError as error:
            say(str(error))
            return None


def run_tests(host: Path, environment: dict[str, str], arguments: list[str]) -> tuple[int, int, int]:
    """Run the tests marked `host` and return how many passed, failed (or broke) and were skipped."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "host",
            "-q",
            "--tb=short",
            f"--junit-xml={report}",
            *arguments,
        ]
        subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **environment, "COMFYUI_PATH": str(host)})
        if not report.is_file():
            return 0, 1, 0
        suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, failures, errors, skipped = (int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped"))
    return total - failures - errors - skipped, failures + errors, skipped


def check(release: Release, arguments: list[str]) -> Row:
    """Get one ComfyUI, start it with the pack, run the tests on it, and return its row."""
    folder = ROOT / ".host" / "matrix" / release.version
    log = folder / "install.log"
    host = get_host(Path(sys.executable), release, folder / "ComfyUI", log, use_git=False)
    environment = {"PYTHONPATH": str(overlay(host, folder / "packages", log))}
    seconds = boot_seconds(host, environment)
    if seconds is None:
        return Row(release.version, None, 0, 0, 0)
    return Row(release.version, seconds, *run_tests(host, environment, arguments))


def main() -> int:
    """Check the chosen versions, all by default, and print a table; exit code 1 if any did not boot or failed."""
    versions = [argument for argument in sys.argv[1:] if re.fullmatch(r"\d+\.\d+\.\d+", argument)]
    arguments = [argument for argument in sys.argv[1:] if argument not in versions]
    known = [release.version for release in RELEASES]
    unknown = set(versions) - set(known)
    if unknown:
        raise SystemExit(f"hosts: no ComfyUI {', '.join(sorted(unknown))} here: choose from {', '.join(known)}")
    rows = []
    for release in RELEASES:
        if versions and release.version not in versions:
            continue
        say(f"ComfyUI {release.version}")
        try:
            rows.append(check(release, arguments))
        except SetupError as error:
            raise SystemExit(f"hosts: {error}") from None
    print("\n| ComfyUI | starts with the pack | tests passed | failed | skipped |\n|---|---|---|---|---|")
    for row in rows:
        boots = "no" if row.boot_seconds is None else f"yes, {row.boot_seconds:.0f} s"
        print(f"| {row.version} | {boots} | {row.passed} | {row.failed} | {row.skipped} |")
    return int(any(row.boot_seconds is None or row.failed for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
