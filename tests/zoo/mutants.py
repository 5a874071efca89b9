"""Zoo B: mistakes that are made in this field, put into our own code one line at a time, and the tests that see them.

A mutant is a line of the real code and what a slip of the pen would make of it. `test_mutants.py` puts each into the
source of its module while that is imported, in a process of its own, and demands that the tests named here fail.
`python tests/zoo/mutants.py` writes the table of docs/evaluation.md.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evaluation.md"
FIRST = "<!-- Zoo B is written by `python tests/zoo/mutants.py`. -->\n"
BAR = "\\|"  # what a bar is in a cell
LAST = "<!-- Here ends Zoo B. -->\n"

HOST, ATTACKS = "advdistill/engine", "plugins/advdistill_attacks"
UNIT = "tests/unit"
GOLDEN = "tests/golden/test_losses.py::test_losses_gradients_and_objectives_are_the_equations"


@dataclass(frozen=True)
class Mutant:
    """One line of ours, gone wrong.

    Attributes:
        name: kebab-case. what: the mistake, for the table.
        file: below the repository's root. old, new: part of one line, found there exactly once, and what stands in its
            place.
        killers: node ids of tests, all of which fail with it and pass without it.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]

    @property
    def module(self) -> str:
        """Its import name."""
        return self.file.removeprefix("plugins/").removesuffix(".py").replace("/", ".")

    @property
    def line(self) -> str:
        """The whole line as it is, without its indentation."""
        source = (ROOT / self.file).read_text(encoding="utf-8")
        self.applied(source)
        return next(line.strip() for line in source.splitlines() if self.old in line)

    def applied(self, source: str) -> str:
        """The module's source with the mistake in it."""
        if source.count(self.old) != 1 or "\n" in self.old + self.new or self.old == self.new:
            raise ValueError(f"{self.name}: {self.old!r} stands {source.count(self.old)} times in {self.file}")
        return source.replace(self.old, self.new)

    def install(self) -> None:
        """From now on the module is imported with the mistake in it; it must not have been imported before."""
        if self.module in sys.modules:
            raise ValueError(f"{self.module} has been imported already")
        sys.meta_path.insert(0, _Finder(self))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        file = str(ROOT / self._mutant.file)
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(self._mutant, fullname, file))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, mutant: Mutant, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()  # never the cached bytecode, and none is written
        return compile(self._mutant.applied(source), self.path, "exec", dont_inherit=True)


MUTANTS = (
    # What is attacked, and how far
    Mutant(
        "normalised-radius",
        "the attack works in normalised space: its radius is taken in units of the pixels' standard deviation",
        f"{HOST}/evaluate.py",
        "participant, threat = self.participant, protocol.threat",
        "participant, (norm, eps) = self.participant, vars(protocol.threat).values(); "
        "threat = type(protocol.threat)(norm, 0.27 * eps)",
        (f"{UNIT}/test_outcomes.py::test_sizes_are_those_of_the_threat",),
    ),
    Mutant(
        "double-normalisation",
        "pixels are normalised twice",
        "plugins/advdistill_clip/models.py",
        "pixels = (pixels - self.mean) / self.std",
        "pixels = ((pixels - self.mean) / self.std - self.mean) / self.std",
        (f"{UNIT}/test_clip_models.py::test_features_are_open_clips",),
    ),
    Mutant(
        "radius-over-255-twice",
        "8/255 is divided by 255 once more",
        "advdistill/recipe/fields.py",
        "number = float(top) / (float(bottom) if slash else 1.0)",
        "number = float(top) / (float(bottom) ** 2 if slash else 1.0)",
        (f"{UNIT}/test_recipe_resolving.py::test_distances_read_and_write",),
    ),
    Mutant(
        "ball-not-enforced",
        "what an attack returns is taken as it is, outside the ball too",
        f"{HOST}/attack.py",
        "images = self.threat.project(images.detach().to(self.images.dtype), self.images)",
        "images = images.detach().to(self.images.dtype)",
        (f"{UNIT}/test_threat_and_noise.py::test_what_an_attack_returns_is_not_trusted",),
    ),
    Mutant(
        "found-outside-the-ball",
        "an image that misleads counts wherever it lies",
        f"{HOST}/attack.py",
        "fresh = self.threat.holds(images, clean) & ~self._broken[rows]",
        "fresh = ~self._broken[rows]",
        (
            f"{UNIT}/test_threat_and_noise.py::test_looks_outside_the_ball_do_not_count",
            f"{UNIT}/test_evaluate.py::test_images_outside_the_ball_do_not",
        ),
    ),
    Mutant(
        "pixels-leave-the-box",
        "projection forgets that pixels lie in [0, 1]",
        f"{HOST}/types.py",
        "return torch.clamp(images, clean - self.eps, clean + self.eps).clamp_(0, 1)",
        "return torch.clamp(images, clean - self.eps, clean + self.eps)",
        (f"{UNIT}/test_threat_and_noise.py::test_projection",),
    ),
    Mutant(
        "shuffled-labels",
        "the attack gets the labels of other images",
        f"{HOST}/attack.py",
        "self.images, self.labels, self.threat = images, labels, threat",
        "self.images, self.labels, self.threat = images, labels.roll(1), threat",
        (
            f"{UNIT}/test_attacks.py::test_pgd_equals_torchattacks",
            f"{UNIT}/test_evaluate.py::test_only_survivors_are_attacked",
        ),
    ),
    Mutant(
        "stale-class-features",
        "prompts have learned, and the class features of the step before are used",
        f"{HOST}/participant.py",
        "if self._classifier_learns or self.ema:",
        "if self.ema:",
        (f"{UNIT}/test_step.py::test_class_features_are_encoded_once_a_step",),
    ),
    Mutant(
        "hand-prompt-attacked",
        "the attack classifies with the undefended model's prompts, the verdict with the learned ones",
        f"{HOST}/participant.py",
        "features() if features else self.features(images), classifier.detach() if constant else classifier",
        "features() if features else self.features(images), "
        "self.model.undefended().classifier(self.prepared) if constant else classifier",
        (f"{UNIT}/test_judge.py::test_the_model_that_is_attacked_is_the_one_that_classifies",),
    ),
    Mutant(
        "train-mode",
        "the model is measured in training mode",
        f"{HOST}/participant.py",
        "with exact(), self.model.evaluated(), self._asking(False):",
        "with exact(), self._asking(False):",
        (f"{UNIT}/test_judge.py::test_what_is_in_training_is_attacked_and_judged_in_eval_mode",),
    ),
    Mutant(
        "source-ignored",
        "a transfer attack is made on the measured model itself",
        f"{HOST}/evaluate.py",
        "images = stage(problem, threat, noise, source=protocol.attacker.source)",
        "images = stage(problem, threat, noise)",
        (f"{UNIT}/test_outcomes.py::test_images_are_made_on_the_source_and_judged_on_the_model",),
    ),
    Mutant(
        "base-is-the-student",
        'examples "from the undefended model" are made on the defended one',
        f"{HOST}/subject.py",
        "base = self.model.undefended()",
        "base = self.model",
        (f"{UNIT}/test_outcomes.py::test_whose_model_a_name_means",),
    ),
    Mutant(
        "teacher-as-it-began",
        "examples from a teacher are made on what it was before the run",
        f"{HOST}/checkpoint.py",
        "own = {name.removeprefix(head): t for name, t in read(opened.path)[1].items() if name.startswith(head)}",
        "own: dict[str, Tensor] = {}",
        (f"{UNIT}/test_outcomes.py::test_whose_model_a_name_means",),
    ),
    Mutant(
        "found-elsewhere",
        "what misleads the model that images are made on counts as found on the measured one",
        f"{HOST}/attack.py",
        "other._objective, other._watch = None, False",
        "other._objective, other._watch = None, self._watch",
        (f"{UNIT}/test_outcomes.py::test_images_are_made_on_the_source_and_judged_on_the_model",),
    ),
    Mutant(
        "study-on-test-samples",
        "what an attack learns beforehand it learns from the samples that it is measured on",
        f"{HOST}/evaluate.py",
        'split = self.splits("train")',
        'split = self.splits("test")',
        (f"{UNIT}/test_outcomes.py::test_what_an_attack_learns_it_learns_from_training_samples",),
    ),
    Mutant(
        "one-radius-for-the-curve",
        "every point of a curve over the radius is taken at the same one",
        f"{HOST}/subject.py",
        "wider = replace(ball, eps=radius)",
        "wider = replace(ball, eps=ball.eps)",
        (f"{UNIT}/test_suite.py::test_columns_stand_in_the_order_of_what_an_attacker_knows",),
    ),
    Mutant(
        "greediest-is-meekest",
        "an ensemble is called black-box because one of its attacks is",
        f"{HOST}/protocol.py",
        "greediest = min((ASKS.index(each.asks) for each in inner), default=0)",
        "greediest = max((ASKS.index(each.asks) for each in inner), default=0)",
        (f"{UNIT}/test_protocol.py::test_a_wrapper_is_as_greedy_as_what_it_wraps",),
    ),
    Mutant(
        "transfer-called-white-box",
        "images made on another model stand in the white-box column",
        f"{HOST}/protocol.py",
        'return "transfer"',
        'return "white-box"',
        (
            f"{UNIT}/test_protocol.py::test_knowledge_has_one_name",
            f"{UNIT}/test_protocol.py::test_a_source_is_never_white_box",
        ),
    ),
    # How it climbs
    Mutant(
        "wrong-sign",
        "pgd goes down the loss",
        f"{ATTACKS}/pgd.py",
        "ahead = here + step * way",
        "ahead = here - step * way",
        (f"{UNIT}/test_attacks.py::test_pgd_equals_torchattacks", f"{UNIT}/test_attacks.py::test_momentum_is_mmt_ards"),
    ),
    Mutant(
        "targeted-sign",
        "a targeted attack goes away from its target",
        f"{ATTACKS}/losses.py",
        "return -ce(logits, targets)",
        "return ce(logits, targets)",
        (f"{UNIT}/test_apgd.py::test_the_target_gains",),
    ),
    Mutant(
        "half-precision-gradient",
        "gradients pass through float16, where small ones are 0",
        f"{HOST}/attack.py",
        "return gradient, values",
        "return gradient.half().float(), values",
        (f"{UNIT}/test_threat_and_noise.py::test_gradients_are_exact_however_small",),
    ),
    Mutant(
        "gradient-of-the-batch-mean",
        "a sample's gradient shrinks with its batch",
        f"{HOST}/attack.py",
        "torch.autograd.grad(values.sum(), pixels,",
        "torch.autograd.grad(values.mean(), pixels,",
        (f"{UNIT}/test_threat_and_noise.py::test_gradients_are_per_sample",),
    ),
    Mutant(
        "one-draw-for-all",
        "expectation over transformations is taken over a single draw",
        f"{HOST}/attack.py",
        "drawn = [self._gradient(images, rows) for _ in range(self._draws)]",
        "drawn = [self._gradient(images, rows) for _ in range(1)]",
        (f"{UNIT}/test_threat_and_noise.py::test_several_draws_are_averaged",),
    ),
    Mutant(
        "own-loss-forgets-to-draw",
        "an attack with a loss of its own, wrapped in expectation over transformations, draws once",
        f"{HOST}/attack.py",
        "other._draws = draws or self._draws",
        "other._draws = draws or 1",
        (f"{UNIT}/test_threat_and_noise.py::test_what_is_not_restated_stays",),
    ),
    Mutant(
        "last-iterate",
        "apgd returns where it ended, not the best it saw",
        f"{ATTACKS}/apgd.py",
        "state.best = torch.where(wide, state.images, state.best)",
        "state.best = state.images",
        (f"{UNIT}/test_apgd.py::test_it_is_the_plain_loop",),
    ),
    Mutant(
        "goes-on-from-the-last",
        "when apgd halves its step it goes on from the last iterate, not the best",
        f"{ATTACKS}/apgd.py",
        "state.images = torch.where(wide, state.best, state.images)",
        "state.images = torch.where(wide, state.images, state.images)",
        (f"{UNIT}/test_apgd.py::test_it_is_the_plain_loop",),
    ),
    Mutant(
        "last-restart",
        "the last restart's image is kept, not the best one's",
        f"{ATTACKS}/apgd.py",
        "better = values > self._values",
        "better = values == values",
        (f"{UNIT}/test_apgd.py::test_more_restarts_never_lead_lower",),
    ),
    Mutant(
        "seed-ignored",
        "every seed draws the same noise",
        f"{HOST}/evaluate.py",
        'noise = Noise(self.seed, "evaluate", 0, batch.samples)',
        'noise = Noise(0, "evaluate", 0, batch.samples)',
        (f"{UNIT}/test_evaluate.py::test_a_seed_is_a_draw",),
    ),
    Mutant(
        "noise-by-place",
        "a sample's noise depends on its place in the batch",
        f"{HOST}/evaluate.py",
        'noise = Noise(self.seed, "evaluate", 0, batch.samples)',
        'noise = Noise(self.seed, "evaluate", 0, torch.arange(len(batch)))',
        (f"{UNIT}/test_outcomes.py::test_a_sample_takes_its_noise_with_it",),
    ),
    # Who is counted
    Mutant(
        "inverted-survivors",
        "the attack runs on what is broken already, and spares what is not",
        f"{HOST}/evaluate.py",
        "open_ = state.right if free else torch.ones_like(state.right)",
        "open_ = ~state.right if free else torch.ones_like(state.right)",
        (f"{UNIT}/test_evaluate.py::test_only_survivors_are_attacked",),
    ),
    Mutant(
        "survivors-as-denominator",
        "robust accuracy is a share of the samples that were right before",
        f"{HOST}/outcomes.py",
        "return Count.of(self.right, self.sources)",
        "return Count.of(self.right[self.clean], self.sources[self.clean])",
        (f"{UNIT}/test_outcomes.py::test_all_samples_are_counted",),
    ),
    Mutant(
        "clean-as-robust",
        "clean accuracy is printed as robust",
        f"{HOST}/outcomes.py",
        "return Count.of(self.right, self.sources)",
        "return Count.of(self.clean, self.sources)",
        (
            f"{UNIT}/test_outcomes.py::test_all_samples_are_counted",
            f"{UNIT}/test_evaluate.py::test_what_decided_a_sample_can_be_shown",
        ),
    ),
    Mutant(
        "first-n",
        "a subset is the beginning of the data",
        f"{HOST}/data.py",
        "return order[rank[order].argsort(stable=True)[:limit]].sort().values",
        "return torch.arange(limit)",
        (f"{UNIT}/test_protocol.py::test_a_subset_is_drawn_evenly_from_sorted_data",),
    ),
    Mutant(
        "another-subset-for-attacks",
        "clean and robust accuracy are taken on different samples",
        f"{HOST}/evaluate.py",
        "indices = stratified(split.labels, protocol.limit, self.seed)",
        "indices = stratified(split.labels, protocol.limit, self.seed + (protocol.attack is not None))",
        (f"{UNIT}/test_protocol.py::test_all_protocols_look_at_the_same_samples",),
    ),
    Mutant(
        "later-stage-takes-back",
        "a sample that one attack broke is robust again when a later one fails",
        f"{HOST}/evaluate.py",
        "at, live = pack.positions, self.right[pack.positions]",
        "at, live = pack.positions, self.clean[pack.positions]",
        (f"{UNIT}/test_outcomes.py::test_a_later_stage_takes_nothing_back",),
    ),
    Mutant(
        "best-case-over-attacks",
        "the worst case over attacks counts who withstands any of them",
        f"{HOST}/outcomes.py",
        "torch.stack([o.right for o in found]).all(0)",
        "torch.stack([o.right for o in found]).any(0)",
        (f"{UNIT}/test_outcomes.py::test_the_worst_case_is_over_all_attacks_of_a_scope",),
    ),
    # What a verdict rests on
    Mutant(
        "verdict-by-claim",
        "a sample is broken if the attacked model said so",
        f"{HOST}/evaluate.py",
        "return pack.judged(images, look.right, look.cross_entropy, rounded)",
        "return pack.judged(images, pack.claimed, look.cross_entropy, rounded)",
        (f"{UNIT}/test_judge.py::test_a_claim_is_no_verdict",),
    ),
    Mutant(
        "judge-is-the-attacked-model",
        "the verdict is the attacked model's, not that of the export",
        f"{HOST}/subject.py",
        'return Judge(Classifier(Participant(exported, classes), Threat("linf", 0.0)))',
        'return Judge(Classifier(Participant(self.model, classes), Threat("linf", 0.0)))',
        (f"{UNIT}/test_judge.py::test_what_became_of_the_attacked_model_changes_no_verdict",),
    ),
    Mutant(
        "measured-in-bf16",
        "a run in bf16 is measured in bf16",
        f"{HOST}/participant.py",
        "self._manner, self._look, self._class_features = Manner(), look, self._when_deployed",
        "self._class_features = self._when_deployed",
        (f"{UNIT}/test_evaluate.py::test_a_run_in_bf16_is_measured_in_full_precision",),
    ),
    Mutant(
        "verdict-on-8-bits",
        "the verdict is given on the image as a PNG would hold it",
        f"{HOST}/evaluate.py",
        "look = self._look(images, clean.labels)",
        "look = self._look((images * 255).round() / 255, clean.labels)",
        (f"{UNIT}/test_judge.py::test_verdicts_rest_on_floats_and_8_bits_are_told_beside",),
    ),
    Mutant(
        "rounding-to-the-nearest",
        "saved images are rounded to the nearest level, out of the ball",
        f"{HOST}/judge.py",
        "return torch.where(down, levels.floor(), torch.where(up, levels.ceil(), levels.round())).to(torch.uint8)",
        "return levels.round().to(torch.uint8)",
        (
            f"{UNIT}/test_judge.py::test_rounding_goes_towards_the_clean_image",
            f"{UNIT}/test_subject.py::test_rounding_stays_in_the_ball",
        ),
    ),
    Mutant(
        "portions-of-any-size",
        "a verdict's forward holds as many images as there happen to be",
        f"{HOST}/judge.py",
        "missing = PORTION - len(some)",
        "missing = 0",
        (
            f"{UNIT}/test_judge.py::test_every_forward_holds_64",
            f"{UNIT}/test_judge.py::test_a_verdict_does_not_depend_on_company",
        ),
    ),
    Mutant(
        "ties-are-right",
        "a model that says the same of all classes is right",
        f"{HOST}/attack.py",
        "return logits.gather(1, label).squeeze(1) > logits.scatter(1, label, -torch.inf).amax(1)",
        "return logits.gather(1, label).squeeze(1) >= logits.scatter(1, label, -torch.inf).amax(1)",
        (f"{UNIT}/test_judge.py::test_what_a_correct_answer_is",),
    ),
    Mutant(
        "lucky-draws",
        "of a model that answers at random the unluckiest of many answers counts",
        f"{HOST}/evaluate.py",
        "watch = participant.model.deterministic and participant.model.batch_independent",
        "watch = True",
        (f"{UNIT}/test_evaluate.py::test_a_lucky_image_is_not_kept_of_a_model_that_draws_at_random",),
    ),
    Mutant(
        "nearest-of-the-last-stage",
        "the smallest perturbation that misleads is the last attack's, not the smallest of all",
        f"{HOST}/evaluate.py",
        "self._nearest[at] = torch.minimum(self._nearest[at], pack.nearest)",
        "self._nearest[at] = pack.nearest",
        (f"{UNIT}/test_outcomes.py::test_the_nearest_of_all_stages_is_kept",),
    ),
    # What is kept
    Mutant(
        "another-checkpoints-cache",
        "images that were made on another checkpoint are taken for this one's",
        f"{HOST}/store.py",
        'hashlib.sha256(f"{self._model}/{key}".encode())',
        'hashlib.sha256(f"{key}".encode())',
        (
            f"{UNIT}/test_store.py::test_nobody_else_finds_a_pack",
            f"{UNIT}/test_store.py::test_another_models_evaluation_takes_nothing_over",
        ),
    ),
    Mutant(
        "radius-not-in-the-key",
        "results at one radius stand in for those at another",
        f"{HOST}/protocol.py",
        '"threat": {"norm": self.threat.norm, "eps": self.threat.eps} if attacked and self.threat else None,',
        '"threat": {"norm": self.threat.norm} if attacked and self.threat else None,',
        (
            f"{UNIT}/test_protocol.py::test_a_key_changes_with_all_that_matters",
            f"{UNIT}/test_evaluate.py::test_a_stored_row_stands_in_where_everything_is_the_same",
        ),
    ),
    Mutant(
        "done-twice",
        "an evaluation that goes on does finished samples again",
        f"{HOST}/evaluate.py",
        "have.update(pack.positions.tolist())",
        "have.update(pack.positions[:0].tolist())",
        (f"{UNIT}/test_store.py::test_a_write_that_fails_loses_no_finished_pack",),
    ),
    # What is learned
    Mutant(
        "teacher-sees-the-adversarial-image",
        "T(x') stands where T(x) belongs",
        "plugins/advdistill_apd/strategy.py",
        'teacher, student = s.teacher("clean")(s.images), s.student(self.adversarial(s))',
        'teacher, student = s.teacher("clean")(self.adversarial(s)), s.student(self.adversarial(s))',
        (f"{GOLDEN}[apd of clean, clean]",),
    ),
    Mutant(
        "divergence-turned-round",
        "KL(q || p) stands where KL(p || q) belongs",
        f"{HOST}/losses.py",
        "return (log_p.exp() * (log_p - log_q)).sum(-1)",
        "return (log_q.exp() * (log_q - log_p)).sum(-1)",
        (f"{GOLDEN}[apd of clean]", f"{GOLDEN}[rslad of robust]"),
    ),
    Mutant(
        "mean-over-classes",
        "a divergence is averaged over classes, not summed",
        f"{HOST}/losses.py",
        "return (log_p.exp() * (log_p - log_q)).sum(-1)",
        "return (log_p.exp() * (log_p - log_q)).mean(-1)",
        (f"{GOLDEN}[apd of clean]", f"{GOLDEN}[ard of robust]"),
    ),
    Mutant(
        "teachers-classes-in-another-order",
        "the teacher's classes stand in another order than the student's",
        f"{HOST}/step.py",
        'return self._look("logits", lambda: said(constant=self._participant.attacked))',
        'return self._look("logits", lambda: said() if self._participant.learns else said().flip(1))',
        (f"{GOLDEN}[apd of clean]",),
    ),
    Mutant(
        "sorted-class-names",
        "a frozen model takes the class names in the order of the alphabet",
        f"{HOST}/participant.py",
        "self.prepared = model.prepare(self.classes)",
        "self.prepared = model.prepare(ClassSet(tuple(sorted(self.classes.names)), self.classes.templates))",
        (f"{UNIT}/test_judge.py::test_the_order_of_the_classes_changes_no_verdict",),
    ),
)


def table() -> str:
    """Of all mutants: what goes wrong, the line, what kills it."""
    rows = ["| what goes wrong | the line, and what it becomes | killed by |", "| --- | --- | --- |"]
    for mutant in MUTANTS:
        line = mutant.line
        wrong = line.replace(mutant.old, mutant.new)
        lines = "<br>".join(f"`{each}`" for each in (mutant.file.removeprefix("plugins/"), line, wrong))
        killers = "<br>".join(f"`{_short(node)}`" for node in mutant.killers)
        cells = (f"**{mutant.name}**: {mutant.what}", lines, killers)
        rows.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(rows)


def _short(node: str) -> str:
    """A node without its folder."""
    file, _, test = node.partition("::")
    return f"{Path(file).stem}::{test}"


def section() -> str:
    """What stands in the page, from the first mark to the last."""
    return (
        f"{FIRST}\n## Zoo B\n\n"
        f"Mistakes in our own code: each of these {len(MUTANTS)} lines, changed as shown, makes every test beside it "
        'fail; without the change they pass (`pytest -m "slow or not slow" tests/zoo/test_mutants.py`).\n\n'
        f"{table()}\n\n{LAST}"
    )


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition(FIRST)
    after = rest.partition(LAST)[2] if mark else ""
    PAGE.write_text(before.rstrip("\n") + "\n\n" + section() + after, encoding="utf-8")
