"""Examines a training: measures what ``fit.doctor`` asks for, tells and stores what it finds.

After an epoch only the records are looked at; training pictures are scored when they show that
training is right and validation wrong, as far as that costs little. At the end all questions are
decided, from the record, the weights and the pictures alone, so that a resumed run comes to the
same answer.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fieldmark.data.batches import Batches, scoring_batches
from fieldmark.data.dataset import Part
from fieldmark.errors import FieldmarkError, ResourceError
from fieldmark.fit import doctor, optimizers, statistics
from fieldmark.fit.doctor import Answers, Case, Finding
from fieldmark.fit.loop import Calm, Plan, choose_trained
from fieldmark.fit.state import TrainState
from fieldmark.fit.trial import tried
from fieldmark.jobs.plan import Job
from fieldmark.runs import doctor as doctor_file
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.doctor import Diagnosis, Measured
from fieldmark.runs.model import Model
from fieldmark.scoring.scorer import Scorer
from fieldmark.seeding import F64, seed_torch, stream

PICTURES = 512
"""Training pictures that are scored at the end, where there is suspicion."""
EARLY = 128
"""The same after an epoch."""
COST = 0.03
"""Share of a training's work that is spent on suspicion after epochs, and on as-written norms."""
TRIED = 32
"""Pictures of the batch that is trained on where nothing was learned."""
_PASS = 3
"""Work of a training picture, in pictures that are scored."""


class Doctor:
    """Watches one training.

    Args:
        job: What was decided.
        state: The training's state.
        plan: The loop's plan.
        val: Batches of validation.
        calm: Gives training pictures for the statistics of batch norm.
        tell: Told every finding when it is known, each code once.
    """

    def __init__(
        self,
        job: Job,
        state: TrainState,
        plan: Plan,
        val: Batches,
        *,
        calm: Calm,
        tell: Callable[[str], None],
    ) -> None:
        self._job, self._state, self._plan, self._val = job, state, plan, val
        self._calm = calm
        self._tell = tell
        self._told: set[str] = set()
        self._spent = 0
        self._conflicting = _conflicting(job.dataset.parts["train"])
        if state.history:  # a resumed run has been told what its record shows
            self._told |= {finding.code for finding in doctor.during(self._case())}

    def after_epoch(self) -> None:
        """Tell what the record shows by now."""
        findings = list(doctor.during(self._case()))
        if "stale_statistics" not in self._told and (found := self._look()) is not None:
            findings.append(found)
        self._announce(findings)

    def conclude(
        self,
        run: RunDirectory,
        model: Model,
        scored: dict[str, F64],
        *,
        has_time: Callable[[], bool] = lambda: True,
    ) -> None:
        """Decide what is wrong, tell it, and write ``doctor.json``.

        Args:
            run: Where to.
            model: The network with the weights that are kept.
            scored: Logits of ``val`` and, if there is one, of ``test``.
            has_time: Whether there is time for a measurement (:data:`PICTURES` are scored in it);
                without it is said what the record and the scores show.
        """
        parts = self._job.dataset.parts
        case = dataclasses.replace(
            self._case(),
            kept=model.info.selected.epoch,
            val=Answers.of(scored["val"], parts["val"].labels),
            test=Answers.of(scored["test"], parts["test"].labels) if "test" in scored else None,
        )
        case = dataclasses.replace(case, subject=doctor.subject(case))
        last = case.subject not in (case.kept, 0)
        bench = self._bench(None if last else model, None if last else scored["val"])
        while (name := doctor.missing(case)) and has_time():
            case = doctor.with_measurement(case, name, **bench.measure(name, case))
        if "fresh" not in case.measured and self._affords_norms(case) and has_time():
            case = doctor.with_measurement(case, "fresh", **bench.measure("fresh", case))
        self._finish(run, case)

    def diverged(self, run: RunDirectory, error: FieldmarkError) -> None:
        """Write ``doctor.json`` for a training that ended with this error, which says the rest."""
        self._told.add("diverged")
        with contextlib.suppress(ResourceError):  # the error that is on its way matters more
            self._finish(run, dataclasses.replace(self._case(), diverged=str(error)))

    def _case(self) -> Case:
        """What is known without any measurement."""
        job, state = self._job, self._state
        parts, k = job.dataset.parts, len(job.dataset.class_names)
        return Case(
            config=job.config,
            class_names=tuple(job.dataset.class_names),
            counts=tuple(parts["train"].counts(k).tolist()),
            num_val=len(parts["val"]),
            history=tuple(state.history),
            kept=state.best_epoch,
            conflicting=self._conflicting,
            incidents=tuple(state.incidents),
            rolled_back=state.rolled_back,
            has_norms=_has_norms(state.module),
            momentum=_momentum(state.module),
            average=state.ema is not None,
            val_is_test="test" in parts and parts["val"].digests == parts["test"].digests,
        )

    def _look(self) -> Finding | None:
        """Score some training pictures if training is right and validation is not."""
        case, config = self._case(), self._job.config
        if len(case.epochs) < 2 or not case.has_norms or config.progressive not in ("", "none"):
            return None
        seen = sum(case.trained(record.epoch) for record in case.epochs)
        if not doctor.far_above(case, case.epochs[-1]):
            return None
        if self._spent + 2 * EARLY > COST * _PASS * seen:
            return None
        self._spent += 2 * EARLY
        bench = self._bench(None, None, count=EARLY)
        case = dataclasses.replace(case, kept=case.epochs[-1].epoch)
        case = doctor.with_measurement(case, "train", **bench.measure("train", case))
        if not doctor.fails_in_scoring(case):
            return None
        case = doctor.with_measurement(case, "fresh", **bench.measure("fresh", case))
        return doctor.stale(case)

    def _bench(self, model: Model | None, logits: F64 | None, count: int = PICTURES) -> _Bench:
        return _Bench(
            self._job, self._state, self._plan, self._val, self._calm, model, logits, count
        )

    def _affords_norms(self, case: Case) -> bool:
        """Whether moving averages score, and what they cost can be measured for little."""
        if self._job.config.norm_statistics != "running" or not case.has_norms:
            return False
        seen = sum(case.trained(record.epoch) for record in case.epochs)
        pictures = min(statistics.PICTURES, sum(case.counts)) + case.num_val
        return pictures <= COST * _PASS * seen

    def _announce(self, findings: list[Finding]) -> None:
        for finding in findings:
            if finding.code not in self._told:
                self._told.add(finding.code)
                self._tell(str(finding))

    def _finish(self, run: RunDirectory, case: Case) -> None:
        findings = doctor.once(doctor.diagnose(case))
        measured = {
            name: Measured(accuracy=answers.accuracy, n=answers.n)
            for name in ("train", "fresh_train", "fresh_val", "raw", "in_training")
            if (answers := getattr(case, name)) is not None
        }
        doctor_file.write(run, Diagnosis(findings=findings, measured=measured))
        self._announce(list(findings))


@dataclasses.dataclass
class _Bench:
    """Measures one network. Pictures are chosen by content, and are always the same."""

    job: Job
    state: TrainState
    plan: Plan
    val: Batches
    calm: Calm
    model: Model | None
    """The kept weights; None for those of the state."""
    val_logits: F64 | None
    count: int = PICTURES
    _logits: F64 = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))

    def measure(self, name: str, case: Case) -> dict[str, object]:
        """Make the measurement that ``doctor.missing`` names; returns fields of the case."""
        made: dict[str, Callable[[Case], dict[str, object]]] = {
            "train": self._train,
            "fresh": self._fresh,
            "raw": self._raw,
            "mode": self._mode,
            "trial": self._trial,
        }
        return made[name](case)

    @property
    def _module(self) -> nn.Module:
        return self.state.scored if self.model is None else self.model.module

    @property
    def _batches(self) -> Batches:
        return _in_scoring(self.job, self.job.dataset.parts["train"].sample(self.count, "doctor"))

    def _scored(self, module: nn.Module, batches: Batches) -> F64:
        spec = self.job.network.input
        if self.model is None:
            spec = dataclasses.replace(spec, views="none")
        network = Scorer(
            module,
            spec=spec,
            device=self.job.device.name,
            channels_last=self.job.config.channels_last,
        )
        outputs = network.over(batch.images for batch in batches.in_order())
        return outputs.numpy().astype(np.float64)

    def _train(self, case: Case) -> dict[str, object]:
        batches = self._batches
        self._logits = self._scored(self._module, batches)
        first = next(iter(batches.in_order())).images
        spread = np.ptp(self._logits, axis=0).max()
        return {
            "train": self._answers(self._logits, batches),
            "same_input": len(first) > 1
            and bool((first.float() - first[0].float()).abs().mean() < ALIKE),
            "same_output": len(self._logits) > 1
            and bool(spread <= SAME * max(1.0, float(np.abs(self._logits).max()))),
        }

    def _fresh(self, case: Case) -> dict[str, object]:
        names = self._moving()
        if not names:
            return {}
        module = copy.deepcopy(self._module)
        statistics.estimate(module, names, self.calm())
        found: dict[str, object] = {}
        if case.train is not None:
            batches = self._batches
            logits = self._scored(module, batches)
            found["fresh_train"] = self._answers(logits, batches)
            found["mended"] = _paired(logits, self._logits, batches.part)
        if self.count == PICTURES:
            logits = self._scored(module, self.val)
            found["fresh_val"] = self._answers(logits, self.val)
            if self.val_logits is not None:
                found["mended_val"] = _paired(logits, self.val_logits, self.val.part)
        return found

    def _raw(self, case: Case) -> dict[str, object]:
        batches = self._batches
        return {"raw": self._answers(self._scored(self.state.module, batches), batches)}

    def _mode(self, case: Case) -> dict[str, object]:
        """Compute as training does, without a gradient: statistics of the batch, dropout."""
        batches, module = self._batches, copy.deepcopy(self._module).train()
        found, labels = [], []
        for number, batch in enumerate(batches.epoch(0)):  # batches of mixed classes
            seed_torch(self.plan.seed, stream("doctor"), number)
            images = batch.images.to(self.plan.device.torch_device)
            with torch.no_grad(), self.plan.device.autocast():
                found.append(module(self.plan.input.normalize(images)).float().cpu())
            labels.append(batch.labels.cpu())
        logits = torch.cat(found).numpy().astype(np.float64)
        return {"in_training": Answers.of(logits, torch.cat(labels).numpy())}

    def _trial(self, case: Case) -> dict[str, object]:
        part = self.job.dataset.parts["train"].sample(TRIED, "doctor trial")
        batches = _in_scoring(self.job, part)
        batch = next(batches.in_order())
        config, constant = self.job.config, doctor.constant_loss(case)
        exploded = constant is not None and case.epochs[-1].train_loss > EXPLODED * constant
        made = partial(
            optimizers.build,
            self.job.resolved.optimizer,
            head=self.job.network.head,
            weight_decay=0.0,
            backbone_lr=config.backbone_lr,
            bias_lr=config.bias_lr,
        )
        trial = tried(
            self.state,
            batch,
            self.plan,
            optimizer=made,
            down_first=exploded,
            only_down=doctor.stalls(case),
        )
        return {"trial": trial}

    def _moving(self) -> list[str]:
        """Batch norms whose statistics moved in the last epoch; frozen ones did not."""
        state = copy.copy(self.state)
        state.module, state.recorder = copy.deepcopy(self.state.module), None
        state.epoch = max(0, self.state.epoch - 1)
        choose_trained(state, self.plan)
        return statistics.moving(state.module)

    def _answers(self, logits: F64, batches: Batches) -> Answers:
        return Answers.of(logits, batches.part.labels)


EXPLODED = 1.5
"""Share of the loss of constant answers from which on a lower learning rate is tried first."""
ALIKE = 0.5
"""Mean difference of pixels, in grey levels of 255, below which pictures are the same."""
SAME = 1e-5
"""Largest difference of outputs, relative to the largest, that is rounding."""


def _keeps_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None


def _has_norms(module: nn.Module) -> bool:
    return any(map(_keeps_statistics, module.modules()))


def _momentum(module: nn.Module) -> float:
    """Least share of a step in running statistics; 1 where they are means of all steps."""
    norms: list[Any] = [each for each in module.modules() if _keeps_statistics(each)]
    return min((1.0 if n.momentum is None else float(n.momentum) for n in norms), default=0.0)


def _in_scoring(job: Job, part: Part) -> Batches:
    return scoring_batches(
        part,
        job.dataset.read,
        spec=job.network.input,
        threads=job.config.threads,
        device=job.device.torch_device,
    )


def _paired(after: F64, before: F64, part: Part) -> tuple[int, int]:
    """Pictures that are right after and wrong before, and the other way."""
    new, old = (logits.argmax(axis=1) == part.labels for logits in (after, before))
    return int((new & ~old).sum()), int((old & ~new).sum())


def _conflicting(part: Part) -> int:
    """Pictures of a split that are there under another label, too."""
    labels: dict[str, set[int]] = defaultdict(set)
    for digest, label in zip(part.digests, part.labels.tolist(), strict=True):
        labels[digest].add(label)
    return sum(len(labels[digest]) > 1 for digest in part.digests)
