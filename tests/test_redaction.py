"""Secrets in addresses reach no file, no console and no MLflow (A3)."""

import pickle
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import everything, few_results

from neulig_ray.cli import main
from neulig_ray.cluster.jobs import told
from neulig_ray.errors import InputError, StageError
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.results import write_results
from neulig_ray.redaction import HIDDEN, redacted, without_secrets
from neulig_ray.report.html import render
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking.mlflow import Tracker
from neulig_ray.tracking.store import local_uri

SECRET = "hunter2"
URIS = {
    "A3-userinfo": ("s3://AKIA:hunter2@bucket/x", "s3://***@bucket/x"),
    "A3-query": ("s3://bucket/x?secret_key=hunter2&region=eu", "s3://bucket/x?secret_key=***&region=***"),
    "user-alone": ("https://hunter2@host/x", "https://***@host/x"),
    "slash-in-password": ("s3://AKIA:a/hunter2+b@bucket/x", "s3://***@bucket/x"),
    "at-in-password": ("https://me:p@hunter2@host/x", "https://***@host/x"),
    "question-mark-in-password": ("https://me:p?hunter2@host/x", "https://***@host/x"),
    "numbers-in-password": ("https://me:123hunter2@host/x", "https://***@host/x"),
    "quote-in-password": ("https://me:p'hunter2@host/x", "https://***@host/x"),
    "sas-token": ("https://a.blob/c?sv=1&sig=hunter2%2B=", "https://a.blob/c?sv=***&sig=***"),
    "query-without-names": ("https://host/x?hunter2", "https://host/x?***"),
    "fragment": ("https://host/x#token=hunter2", "https://host/x#token=***"),
    "driver": ("postgresql+psycopg://me:hunter2@db/x", "postgresql+psycopg://***@db/x"),
    "ray": ("ray://me:hunter2@head:10001", "ray://***@head:10001"),
    "named": ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=***"),
    "named-small": ("--my-token=hunter2", "--my-token=***"),
}
UNTOUCHED = [
    "sqlite:////home/me@work/mlflow.db",
    "http://127.0.0.1:5000",
    "http://host:5000/a@b",
    "s3://bucket/artifacts/expert/tiny-vit.digits@seed-0-0123",
    "hub:me/none?image=image&label=label",
    "http://HOST:PORT (an MLflow server)",
    "https://host/page#place",
    "C:\\me\\a b.db",
    "tiny-vit.digits@seed-0",
    "",
]


@pytest.mark.parametrize(("uri", "shown"), URIS.values(), ids=URIS.keys())
@pytest.mark.parametrize("around", ["{}", "--storage {!r}: no such thing. Use another.", "a {} b", "({})"])
def test_what_is_secret_is_hidden(uri: str, shown: str, around: str) -> None:
    found = redacted(around.format(uri))
    assert SECRET not in found
    if around == "{}":
        assert found == shown
        assert redacted(found) == found


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text
    assert redacted(f"--storage {text!r}: no.") == f"--storage {text!r}: no."


@given(st.text())
def test_no_text_crashes(text: str) -> None:
    once = redacted(text)
    assert redacted(once) == once


@given(
    st.sampled_from(["s3", "http", "https", "postgresql", "ray", "gs"]),
    st.text(min_size=1).map(lambda text: quote(text, safe="")),
    st.text("abcdefXYZ0189+/:?#@!$%&'", min_size=3).map(lambda text: f"Q{text}W"),
)
def test_no_password_shows(scheme: str, user: str, password: str) -> None:
    assert redacted(f"{scheme}://{user}:{password}@host/path") == f"{scheme}://{HIDDEN}@host/path"


@given(st.text("abcXYZ09-._~%+/:@!$'()*,", min_size=1))
def test_no_value_of_a_query_shows(value: str) -> None:
    text = f"Q{value}W"
    assert text not in redacted(f"see 's3://bucket/x?key={text}&other={text}': no")


@pytest.mark.parametrize("piece", ["a", "a-", "a_", "token", "?", "a:", "/", "@", "=", "&x=", ".", "x://"])
def test_long_texts_take_no_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    started = time.process_time()
    redacted(text)
    redacted(f"https://host/{text}")
    assert time.process_time() - started < 4


def test_nested_values_keep_their_shape() -> None:
    value: dict[str, Any] = {"a": ["https://u:hunter2@h", 1, None, (2.5, True)], "b": {"c": "plain"}}
    assert without_secrets(value) == {"a": ["https://***@h", 1, None, (2.5, True)], "b": {"c": "plain"}}


@pytest.mark.parametrize("kind", [InputError, StageError])
def test_errors_hide_it_wherever_they_go(kind: type[Exception]) -> None:
    error = kind(f"no s3://key:{SECRET}@bucket")
    assert SECRET not in str(error) + repr(error) + repr(pickle.loads(pickle.dumps(error)))
    assert SECRET not in told(OSError(f"no s3://key:{SECRET}@bucket"))


COMMANDS = {
    "A3-storage": ["run", "{file}", "--storage", "s3://key:hunter2@bucket?endpoint_override=hunter2"],
    "A3-tracking": ["run", "{file}", "--storage", "{folder}", "--tracking-uri", "http://me:hunter2@127.0.0.1:1"],
    "plugins": ["run", "{file}", "--plugins", "https://me:hunter2@host/x.py"],
    "import": ["import", "https://me:hunter2@h/x.pt", "--arch", "tiny-vit", "--task", "x",
               "--origin", "seed-0", "--out", "{folder}/x.safetensors"],
    "merge": ["merge", "average", "--experts", "s3://k:hunter2@b/x", "y",
              "--out", "{folder}/m"],
    "ls": ["storage", "ls", "--storage", "nowhere://key:hunter2@bucket"],
    "doctor-like": ["report", "{file}", "{file}", "--storage", "{folder}/https://me:hunter2@x"],
    "unknown-scheme": ["run", "{file}", "--storage", "{folder}", "--tracking-uri", "nowhere://a:hunter2@h/x"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_no_command_prints_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from neulig_ray.experiment.config import Experiment\n"
        'experiment = Experiment(name="mine", tasks=("digits", "letters"), archs=("tiny-vit",))\n'
    )
    given = [word.format(file=file, folder=tmp_path / "storage") for word in command]
    assert main(given) == 2
    printed = "".join(capsys.readouterr())
    assert "error: " in printed
    assert SECRET not in printed + caplog.text


def test_no_file_of_a_run_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run writes, without its stages: results, provenance, report, manifests, and MLflow's records."""
    address = f"s3://key:{SECRET}@bucket/x?token={SECRET}"
    experiment = Experiment(name="mine", tasks=("digits", "letters"), archs=("tiny-vit",), plugins=(address,))
    monkeypatch.setattr("sys.argv", ["neulig", "run", "mine", "--storage", address])
    plan, storage = make_plan(experiment), Storage(str(tmp_path / "storage"))
    failures = {e.job.artifact.fingerprint: f"OSError: {address} is away" for e in plan.evaluations}
    table, about = write_results(plan, storage, failures)
    assert table["status"].str.contains("bucket").all(), "the failures are told"
    storage.write("mine/report.html", render({"mine": table}, {"mine": about}).encode())
    storage.commit(Artifact.of("expert", "x", 1, {}), {}, {"source": address, "notes": [address]})

    frame = few_results()
    frame = frame[frame["method"].isin(["expert", "average"])].copy()
    frame.loc[frame["method"] == "average", "status"] = f"failed: {address}"
    uri, location = local_uri(storage.root)
    Tracker(uri, "mine", location).record(**everything(frame))

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"results.json", "results.parquet", "report.html", "mlflow.db"} <= {path.name for path in files}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert SECRET not in pd.read_parquet(path).to_csv(), path
    assert "***@bucket" in (tmp_path / "storage/mine/results.json").read_text(encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "storage/mlflow.db")) as opened:
        assert opened.execute("select count(*) from tags where value like '%***@bucket%'").fetchone()[0] > 0


def test_an_old_report_is_shown_without_it() -> None:
    page = render({"mine": few_results()}, {"mine": {"command": f"neulig --storage s3://k:{SECRET}@b"}})
    assert SECRET not in page
