"""What the report and the talk are made from: runs of this machine, or recorded ones.

What may not be published is set aside with its reason, and what was recorded takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from rsk.base import folders
from rsk.decode import decoding_speeds
from rsk.decode.decoding_speeds import DecodingSpeeds
from rsk.decode.study import Study
from rsk.measure import agreement, ideas, provenance, publishable_runs, resources
from rsk.measure.agreement import Grid
from rsk.measure.ideas import Ideas
from rsk.measure.logits_benchmark import LogitsBenchmark
from rsk.measure.model_step import ModelStepRecord
from rsk.measure.peer_records import PeersRecord
from rsk.measure.quoted import Quoted
from rsk.measure.record_files import by_date
from rsk.measure.records import Benchmark, Provenance, RecordError
from rsk.measure.resources import ResourceTable
from rsk.measure.sharded_records import Sharded
from rsk.sampler.api import BACKENDS

T = TypeVar("T", Benchmark, Study)
F = TypeVar("F", LogitsBenchmark, Sharded, PeersRecord, ModelStepRecord)


@dataclass(frozen=True)
class Source(Generic[T]):
    """A measurement, and whether it was recorded on another machine or at another time."""

    value: T
    recorded: bool

    @property
    def label(self) -> str:
        """Machine, versions and date."""
        return self.value.provenance.label


@dataclass(frozen=True)
class Recorded(Generic[F]):
    """What the templates may name of one recorded file."""

    found: F

    @property
    def label(self) -> str:
        """Machine, versions and date."""
        return self.found.provenance.label


@dataclass(frozen=True)
class Measurements:
    """All that the words may draw on; each value of a template comes from one of these."""

    cpu: Source[Benchmark]
    gpu: Source[Benchmark]
    study: Source[Study]
    quoted: Quoted
    """The table of the earlier work."""
    grid: Grid
    resources: ResourceTable
    tried: Ideas
    """What was tried on the kernels."""
    logits: LogitsBenchmark
    """On a GPU."""
    sharded: Sharded
    """On several."""
    peers: PeersRecord
    """Samplers of other projects."""
    steps: ModelStepRecord | None
    """Decoding steps of models at real scale, if they were recorded."""
    public_model: list[DecodingSpeeds]
    """Of a public model with the draft that ships for it, by machine."""
    narrower: Benchmark | None = None
    """A sweep on the CPU with other vector instructions than its own, if one was recorded."""
    set_aside: tuple[str, ...] = ()
    """What this run measured and may not be published, each with its reason."""

    @property
    def provenances(self) -> dict[str, Provenance]:
        """Where and with what each of the times was measured."""
        found: dict[str, Any] = {
            "sweep, CPU": self.cpu.value,
            "sweep, GPU": self.gpu.value,
            "from logits": self.logits,
            "several GPUs": self.sharded,
            "other projects": self.peers,
            "decoding steps": self.steps,
            "small models": self.study.value,
            "kernels compared": self.grid,
        }
        if self.narrower:
            found[f"sweep, CPU ({self.narrower.provenance.instructions})"] = self.narrower
        for one in self.public_model:
            found[f"public model, {one.provenance.kind}"] = one
        made = {name: one.provenance for name, one in found.items() if one is not None}
        return made | {"ideas tried": self.tried.provenance}

    @property
    def epoch(self) -> int:
        """The date of the newest, in seconds, or ``$SOURCE_DATE_EPOCH``."""
        if given := os.environ.get("SOURCE_DATE_EPOCH"):
            return int(given)
        dates = (datetime.fromisoformat(made.date) for made in self.provenances.values())
        return int(max(dates).timestamp())


def gather(results: Path | None = None) -> Measurements:
    """Collect what a run measured, and for the rest what was recorded.

    Args:
        results: folder of the run's results; without one, only what was recorded counts.

    Raises:
        RecordError: something is missing, damaged, or may not be published; says what and why.
    """
    set_aside: list[str] = []
    runs = {}
    if results is not None and (path := results / "06_benchmarks.json").is_file():
        run = Benchmark.load(path)
        if reason := publishable_runs.refusal(run, here=True):
            set_aside.append(f"{path.name}: {reason}")
        else:
            runs[run.provenance.device] = Source(run, recorded=False)
    for device in ("cpu", "cuda"):
        if device not in runs:
            runs[device] = Source(publishable_runs.newest(device), recorded=True)
    study = None
    if results is not None and (path := results / "07_real_llm.json").is_file():
        found = Study.load(path)
        if reason := study_refusal(found, here=True):
            set_aside.append(f"{path.name}: {reason}")
        else:
            study = Source(found, recorded=False)
    return Measurements(
        cpu=runs["cpu"],
        gpu=runs["cuda"],
        study=study or Source(_recorded_study(), recorded=True),
        quoted=publishable_runs.earlier_work(),
        grid=agreement.newest(),
        resources=resources.load(),
        tried=ideas.load(),
        logits=recorded_logits(),
        sharded=recorded_sharded(),
        peers=recorded_peers(),
        steps=recorded_steps(),
        public_model=decoding_speeds.recorded(),
        narrower=publishable_runs.of_other_instructions(runs["cpu"].value),
        set_aside=tuple(set_aside),
    )


def study_refusal(study: Study, *, here: bool = False) -> str:
    """Why a study of two models may not be published; empty if it may.

    Args:
        study: measured or loaded.
        here: as for :func:`rsk.measure.publishable_runs.refusal`.
    """
    made = study.provenance
    if here and made.sources != provenance.sources(made.device):
        return "the samplers have changed since"
    if len(study.by_spec_len()) < 2:
        return "spec_len: expected several values"
    by_draft = study.by_temperature()
    for draft in ("model", "ngram"):
        if len({trial.temperature for trial in by_draft.get(draft, [])}) < 2:
            return f"temperature: expected several values with the draft {draft}"
    if missing := [name for name in BACKENDS if name not in study.by_backend()]:
        return f"the backend {missing[0]} was not measured"
    return ""


def recorded_logits() -> LogitsBenchmark:
    """The newest times from logits that were measured on a GPU.

    Raises:
        RecordError: there are none, or a file is damaged.
    """
    return _newest(LogitsBenchmark, "logits", lambda one: one.provenance.device == "cuda")


def recorded_sharded() -> Sharded:
    """The newest times on several GPUs.

    Raises:
        RecordError: there are none, or a file is damaged.
    """
    return _newest(Sharded, "sharded", lambda one: one.backend == "nccl")


def recorded_peers() -> PeersRecord:
    """The newest record of other projects' samplers on a GPU.

    Raises:
        RecordError: there are none, or a file is damaged.
    """
    return _newest(PeersRecord, "peers", lambda one: one.provenance.device == "cuda")


def recorded_steps() -> ModelStepRecord | None:
    """The newest decoding steps of models at real scale on a GPU, if there are any.

    Raises:
        RecordError: a file is damaged.
    """
    found = _of_gpus(ModelStepRecord, "model-step", lambda one: one.provenance.device == "cuda")
    return found[-1] if found else None


def _newest(kind: type[F], folder: str, is_of_gpus: Callable[[F], bool]) -> F:
    found = _of_gpus(kind, folder, is_of_gpus)
    if not found:
        raise RecordError(f"data/{folder}: expected a record of a GPU, found none")
    return found[-1]


def _of_gpus(kind: type[F], folder: str, is_of_gpus: Callable[[F], bool]) -> list[F]:
    """The records in a folder of ``data/`` that are of GPUs, the newest last."""
    return list(filter(is_of_gpus, by_date(kind.load, folder)))


def _recorded_study() -> Study:
    paths = sorted((folders.data_dir() / "decoding").glob("*.json"))
    studies = sorted(map(Study.load, paths), key=lambda study: study.provenance.date)
    if not studies:
        raise RecordError("data/decoding/*.json is missing; python -m rsk.decode.trials makes it")
    if reason := study_refusal(studies[-1]):
        raise RecordError(f"data/decoding: {studies[-1].provenance.label}: {reason}")
    return studies[-1]
