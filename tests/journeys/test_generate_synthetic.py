"""generate_synthetic as its user meets it: in a process that is killed, interrupted, refused the disk, or not alone."""

import ctypes
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.running import ROOT, ended, read_rows, start
from tests.support.synthetic import Town, town

SLOW_S = 0.15
"""Of an answer, where a process is to be met at its work."""


@pytest.fixture
def place(folder: Path) -> Iterator[Town]:
    with town(folder) as there:
        yield there


def wanted(place: Town, folder: str, count: int) -> tuple[dict[str, bytes], int]:
    """(files, requests) of a run that nothing disturbs."""
    before = place.asked
    outcome = place.run("-n", str(count), "-o", folder)
    assert outcome.code == 0, outcome.stderr
    return place.files(folder), place.asked - before


def kill(process: "Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def killed_again_and_again(place: Town, count: int, kills: int, concurrency: int) -> None:
    """No answer is lost, none is paid twice beyond those in flight, and the files are those of an undisturbed run."""
    files, requests = wanted(place, "undisturbed", count)
    different = len(place.models.seen)  # two records may be asked for in the same words
    place.models.seen.clear()
    chance, before = random.Random(0), place.asked
    place.models.delay_s = 0.02
    kept: list[str] = []
    for _ in range(kills):
        share = requests // (kills + 1)
        kill(place.start_and_wait(chance.randint(1, max(2, share)), "-n", str(count), "-c", str(concurrency)))
        now = (place.folder / "out/paid_answers.jsonl").read_text(encoding="utf-8").splitlines()
        now = [line for line in now if line.endswith("}")]  # the last one may be torn
        assert now[: len(kept)] == kept
        kept = now
    outcome = place.run("-n", str(count), "-c", str(concurrency))
    assert outcome.code == 0, outcome.stderr
    assert place.files() == files
    assert len(place.models.seen) == different
    assert 0 <= place.asked - before - requests <= kills * concurrency
    assert not [each for each in (place.folder / "out").iterdir() if each.name.startswith(".")]


def test_a_run_that_is_killed_again_and_again_loses_nothing(place: Town) -> None:
    killed_again_and_again(place, count=40, kills=2, concurrency=5)


@pytest.mark.slow
def test_twenty_kills(place: Town) -> None:
    killed_again_and_again(place, count=400, kills=20, concurrency=10)


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_keeps_everything_and_the_same_command_goes_on(place: Town, signals: int) -> None:
    files, requests = wanted(place, "undisturbed", 30)
    place.models.seen.clear()
    place.models.delay_s = SLOW_S
    process = place.start_and_wait(20, "-n", "30")
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    outcome = ended(process)
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.result["status"] == "interrupted"
    assert "the same command goes on where it stopped" in outcome.stderr
    in_flight = 5 if signals == 2 else 0
    assert len(place.paid()) >= sum(place.models.seen.values()) - in_flight
    assert 0 < len(place.rows()) == outcome.result["records"] < 30
    place.models.delay_s = 0
    assert place.run("-n", "30").code == 0
    assert place.files() == files
    assert sum(place.models.seen.values()) <= requests + in_flight


def test_a_second_run_at_once_is_refused_and_touches_nothing(place: Town, folder: Path) -> None:
    place.models.delay_s = SLOW_S
    place.models.fault = lambda said: "{}" if said.number == 0 else None
    first = place.start_and_wait(12, "-n", "300")
    before = (folder / "out/run.json").read_bytes()
    second = ended(place.start("-n", "300"))
    assert first.poll() is None, "the first one has ended, so that there were not two"
    assert second.code == 2
    assert "another run" in second.stderr
    assert "--shard" not in second.stderr  # there is no such option
    assert (folder / "out/run.json").read_bytes() == before
    first.send_signal(signal.SIGINT)
    outcome = ended(first)
    assert outcome.code == 130, outcome.stderr
    reasons = [row["reason"] for row in read_rows(folder / "out/rejected.jsonl")]
    assert reasons.count("no_question") == 1
    assert set(reasons) <= {"no_question", "duplicate"}  # the slower the machine, the more questions


def test_a_second_run_with_overwrite_is_refused_too(place: Town, folder: Path) -> None:
    place.models.delay_s = SLOW_S
    first = place.start_and_wait(12, "-n", "300")
    second = ended(place.start("-n", "3", "--seed", "7", "--overwrite"))
    assert first.poll() is None, "the first one has ended, so that there were not two"
    first.send_signal(signal.SIGINT)
    outcome = ended(first)
    assert second.code == 2, second.stderr
    assert not (folder / "out.old").exists()
    assert len(place.rows()) == outcome.result["records"]


@pytest.mark.parametrize("size", [30_000, 100_000])
def test_a_full_disk_stops_with_a_sentence(place: Town, size: int) -> None:
    def small_disk() -> None:  # no file may pass this: like a full disk, but for this process alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    options = ("-n", "150", "--language", "any")  # to tell languages, a large file is unpacked
    outcome = ended(place.start(*options, preexec=small_disk))
    assert outcome.code == 3, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "cannot be written: File too large" in outcome.stderr
    kept = len(place.paid())
    lost = place.asked - kept
    assert 0 <= lost <= 5  # in flight
    assert kept > 20
    done = place.run(*options)
    assert done.code == 0, done.stderr
    assert len(place.rows()) == 150
    paid = [row["id"] for row in place.paid()]
    assert len({*paid}) == len(paid) == place.asked - lost


def test_a_folder_that_may_not_be_written(place: Town, folder: Path) -> None:
    libc = ctypes.CDLL(None)

    def give_up_root() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for who has no such right, who needs it not

    (folder / "shut").mkdir(mode=0o555)
    for output in ("shut/out", "shut"):
        outcome = ended(place.start("-n", "5", "-o", output, preexec=give_up_root))
        assert outcome.code == 2, outcome.stderr
        assert "cannot be written: Permission denied" in outcome.stderr
        assert "Traceback" not in outcome.stderr
    assert place.asked == 0


def test_the_road_of_the_document(place: Town, folder: Path) -> None:
    """Dry run, a hundred records, a look at ten of them, the data check, and the command that it names next."""
    options = ("--num-records", "100", "--output-dir", "synthetic_datasets", "--price", "0.15/0.6")
    dry = place.run(*options, "--dry-run")
    assert (dry.code, place.asked, (folder / "synthetic_datasets").exists()) == (0, 0, False)
    process = start(
        folder,
        *("--model", "m", "--base-url", place.url, "--domain", "domain.yml", *options, "--progress", "lines"),
        script=ROOT / "scripts/generate_synthetic.py",
    )
    made = ended(process)
    assert made.code == 0, made.stderr
    assert "synthesize: 100/100 records" in made.stderr
    assert "combined_100.json" in made.stderr
    assert dry.result["worst_case_usd"] > 0
    looked = place.run(
        "--output-dir", "synthetic_datasets", "--skip-generation", "--validate", "--validate-samples", "10"
    )
    assert looked.code == 0, looked.stderr
    assert looked.result["overlap"]["rows"] == 10
    checked = ended(
        start(folder, "synthetic_datasets/train.jsonl", "-o", "report", script=ROOT / "scripts/check_data.py")
    )
    assert checked.code == 0, checked.stderr
