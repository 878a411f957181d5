"""What all tests share: the real ComfyUI, in this process (`host`) and as a running server (`server`)."""

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from pack import load_pack
from pack.load_pack import import_host
from pack.run import find_browser
from pack.tests.host_server import HostServer

NO_HOST = "needs a ComfyUI: set COMFYUI_PATH to one, or start the tests with `python run.py test`, which gets one"

# Node tests import ComfyUI at the top of their files, so the host must be importable before they are collected.
if os.environ.get("COMFYUI_PATH"):
    _base = tempfile.TemporaryDirectory(prefix="noise-search-tests-", ignore_cleanup_errors=True)
    HOST: Path | None = import_host(base=Path(_base.name))
    for folder in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (Path(_base.name) / folder).mkdir()
else:
    HOST = None
    collect_ignore = ["nodes"]


def pytest_configure() -> None:
    """End the fixtures, and with them the servers, when the tests are told to end (Ctrl-C does so anyway)."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs ComfyUI, so that `-m host` selects it on every host of the matrix."""
    for item in items:
        in_nodes = Path(item.path).is_relative_to(Path(__file__).parent / "nodes")
        if in_nodes or {"host", "server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.host)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so when the tests that need ComfyUI were left out."""
    if HOST is None:
        terminalreporter.write_line(f"tests/nodes was left out: it {NO_HOST}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the server's log under a failed test that used the server."""
    report = yield
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(running, HostServer):
        report.sections.append(("end of ComfyUI's log", "\n".join(running.log().splitlines()[-60:])))
    return report


@pytest.fixture(scope="session")
def host() -> Path:
    """The folder of a ComfyUI whose modules this process can import, on the CPU, with empty folders of its own."""
    if HOST is None:
        pytest.skip(NO_HOST)
    return HOST


@pytest.fixture(scope="session")
def server(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A running ComfyUI that has loaded this pack and no other, with empty folders of its own."""
    with HostServer(host, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a Chromium or Chrome."""
    path = find_browser()
    if path is None:
        pytest.skip("needs a Chromium or Chrome on the PATH")
    return path


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with other people's implementations that tests compare with, importable while the test runs."""
    folder = Path(load_pack.ROOT) / ".references"
    if not folder.is_dir():
        pytest.skip("needs the reference implementations: start the tests with `python run.py test`, which gets them")
    monkeypatch.syspath_prepend(str(folder))
    return folder
