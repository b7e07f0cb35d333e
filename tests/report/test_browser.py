"""The MLflow pages and the HTML report in a real browser: what a reader looks for is on the page."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import samples

from neulig_ray.report import html
from neulig_ray.tracking.mlflow import Tracker
from neulig_ray.tracking.store import client, local_uri

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
EXPERIMENT = "quickstart"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1900,1300"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason="needs Debian's packages chromium and chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with a recorded experiment and its results; NEULIG_TEST_STORAGE names another one."""
    if given := os.environ.get("NEULIG_TEST_STORAGE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("storage")
    results = samples.results()
    uri, location = local_uri(folder)
    Tracker(uri, EXPERIMENT, location).record(
        results, samples.trials(results, 3), samples.curves(results), samples.cells(results)
    )
    return folder


@pytest.fixture(scope="module")
def page(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server over the storage; stopped by its process group at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", local_uri(storage)[0],
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for_server(address, server, log)
            yield address
        finally:
            os.killpg(server.pid, 15)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)
                server.wait(20)


def _wait_for_server(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the MLflow server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def _open(browser: Any, address: str) -> None:
    browser.get("about:blank")  # a changed fragment alone would leave the page as it was
    browser.get(address)


def _wait_for_text(browser: Any, *wanted: str, seconds: float = 120) -> str:
    """The text of the page once all of `wanted` stand in it."""
    deadline = time.monotonic() + seconds
    text = ""
    while time.monotonic() < deadline:
        text = browser.execute_script("return document.body ? document.body.innerText : ''")
        if all(word in text for word in wanted):
            return text
        time.sleep(0.4)
    raise AssertionError(f"{[word for word in wanted if word not in text]} not on the page:\n{text[:3000]}")


def _wait_for_element(browser: Any, selector: str, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := browser.find_elements("css selector", selector):
            return found[0]
        time.sleep(0.4)
    raise AssertionError(f"nothing on the page is a {selector}")


def _runs(storage: Path, filter_string: str) -> list[Any]:
    found = client(local_uri(storage)[0])
    experiment = found.get_experiment_by_name(EXPERIMENT)
    return list(found.search_runs([experiment.experiment_id], filter_string, max_results=500))


def test_mlflow_shows_parents_children_metrics_tables_and_plots(
    storage: Path, page: str, browser: Any, tmp_path: Path
) -> None:
    whole = _runs(storage, "tags.arch = 'tiny-rn' and tags.n = '5'")
    parent = next(run for run in whole if "mlflow.parentRunId" not in run.data.tags)
    home = f"{page}/#/experiments/{parent.info.experiment_id}/runs"
    run = f"{home}/{parent.info.run_id}"

    _open(browser, home)
    _wait_for_text(browser, "tiny-rn seed-0 n=5", "experts tiny-rn seed-0")
    browser.save_screenshot(str(tmp_path / "runs.png"))

    _open(browser, run)
    _wait_for_text(browser, "tiny-rn seed-0 n=5", "merging/mean", "neulig.fingerprint")
    of_children = ", ".join(f"a[href*='/runs/{run.info.run_id}']" for run in whole if run is not parent)
    _wait_for_element(browser, of_children)
    browser.save_screenshot(str(tmp_path / "parent.png"))

    _open(browser, f"{run}/artifacts/scatter.png")
    _wait_for_text(browser, "scatter.png", "table.json", "results.parquet", "ligand")
    image = _wait_for_element(browser, "img[src^='blob:'], img[src*='get-artifact']")
    assert browser.execute_script("return arguments[0].naturalWidth", image) > 300
    browser.save_screenshot(str(tmp_path / "plot.png"))

    _open(browser, f"{run}/artifacts/table.json")
    _wait_for_text(browser, "granularity", "batch-first-mixed", "merging/mean")
    browser.save_screenshot(str(tmp_path / "table.png"))

    child = next(run for run in whole if run.info.run_name == "ligand sup sample")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    _open(browser, f"{home}/{child.info.run_id}")
    _wait_for_text(browser, "ligand sup sample", "merging/mean", f"{EXPERIMENT}/tiny-rn")
    _wait_for_element(browser, f"a[href*='/runs/{parent.info.run_id}']")
    browser.save_screenshot(str(tmp_path / "child.png"))


def test_the_report_opens_from_a_file_and_asks_for_nothing_else(
    storage: Path, browser: Any, tmp_path: Path
) -> None:
    results = storage / EXPERIMENT / "results.parquet"
    frame = pd.read_parquet(results) if results.exists() else samples.results()
    path = tmp_path / "report.html"
    path.write_text(html.render({EXPERIMENT: frame}, {EXPERIMENT: {"command": f"neulig run {EXPERIMENT}"}}))

    browser.get(path.as_uri())
    _wait_for_text(browser, "Merging versus ensembling", "zeroshot", "hard-routing", "batch-first-mixed")
    assert len(browser.find_elements("css selector", "table.results tbody tr")) > 10
    for plot in browser.find_elements("css selector", "figure svg"):
        assert plot.size["width"] > 300
    assert len(browser.find_elements("css selector", "figure svg")) == 2
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert fetched == []
    wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0  # wide tables scroll inside their own frame
    browser.save_screenshot(str(tmp_path / "report.png"))
