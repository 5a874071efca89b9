"""Attacks of our own. They climb any per-sample objective, so that methods can train against what their paper says."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import AttackSpec, hookimpl


@hookimpl
def advdistill_attacks() -> Iterable[AttackSpec]:
    yield AttackSpec(
        name="pgd",
        target="advdistill_attacks.pgd:PGD",
        config="advdistill_attacks.configs:PGD",
        norms={"linf", "l2"},
        objective=True,
        summary="Projected gradient ascent on any objective, with restarts and momentum",
        reference="https://arxiv.org/abs/1706.06083",
    )
    yield AttackSpec(
        name="fgsm",
        target="advdistill_attacks.pgd:FGSM",
        config="advdistill_attacks.configs:FGSM",
        norms={"linf", "l2"},
        objective=True,
        summary="One gradient step, with a random start if asked",
        reference="https://arxiv.org/abs/1412.6572",
    )
    yield AttackSpec(
        name="teacher-guided",
        target="advdistill_attacks.distilled:TeacherGuided",
        config="advdistill_attacks.configs:TeacherGuided",
        norms={"linf", "l2", "l1"},
        guesses={"labels"},
        wraps="attack",
        summary="Climbs the divergence between a student and its teacher, by any attack",
    )
    yield AttackSpec(
        name="feature",
        target="advdistill_attacks.distilled:Feature",
        config="advdistill_attacks.configs:Feature",
        norms={"linf", "l2", "l1"},
        guesses={"prompts", "templates", "class names", "labels"},
        wraps="attack",
        summary="Climbs the distance of image features from the clean image's, without labels, by any attack",
    )
    yield AttackSpec(
        name="cross-prompt",
        target="advdistill_attacks.distilled:CrossPrompt",
        config="advdistill_attacks.configs:CrossPrompt",
        norms={"linf", "l2", "l1"},
        guesses={"prompts", "templates"},
        wraps="attack",
        summary="Knows the image tower and classifies with other prompts: hand-written, a teacher's, an ensemble's",
    )
    yield AttackSpec(
        name="clean-backbone",
        target="advdistill_attacks.distilled:CleanBackbone",
        config="advdistill_attacks.configs:CleanBackbone",
        norms={"linf", "l2", "l1"},
        asks="nothing",
        guesses={"weights", "prompts"},
        wraps="attack",
        summary="Made on the undefended twin that shares the frozen weights, by any attack",
    )
    yield AttackSpec(
        name="universal",
        target="advdistill_attacks.universal:Universal",
        config="advdistill_attacks.configs:Universal",
        check="advdistill_attacks.checks:learned_beforehand",
        norms={"linf", "l2"},
        guesses={"labels"},
        summary="One perturbation for all images, learned on training images",
        reference="https://arxiv.org/abs/1610.08401",
    )
    yield AttackSpec(
        name="fab-t",
        target="advdistill_attacks.fab:FABT",
        config="advdistill_attacks.configs:FABT",
        norms={"linf", "l2", "l1"},
        targeted=True,
        summary="The nearest misclassified image, by steps onto the linearised boundary to each likely class",
        reference="https://arxiv.org/abs/1907.02044",
    )
    yield AttackSpec(
        name="fmn",
        target="advdistill_attacks.fmn:FMN",
        config="advdistill_attacks.configs:FMN",
        norms={"linf", "l2", "l1"},
        summary="Each sample's smallest radius, by a ball that shrinks and grows",
        reference="https://arxiv.org/abs/2102.12827",
    )
    yield AttackSpec(
        name="square",
        target="advdistill_attacks.square:Square",
        config="advdistill_attacks.configs:Square",
        norms={"linf", "l2", "l1"},
        asks="scores",
        summary="Random search with squares, from logits alone",
        reference="https://arxiv.org/abs/1912.00049",
    )
    yield AttackSpec(
        name="rays",
        target="advdistill_attacks.rays:RayS",
        config="advdistill_attacks.configs:RayS",
        norms={"linf"},
        asks="labels",
        summary="The nearest corner by halving blocks of signs, from answers alone",
        reference="https://arxiv.org/abs/2006.12792",
    )
    yield AttackSpec(
        name="mi-fgsm",
        target="advdistill_attacks.transfer:Transfer",
        config="advdistill_attacks.configs:MIFGSM",
        norms={"linf", "l2"},
        objective=True,
        summary="Gradient signs with momentum, made to transfer",
        reference="https://arxiv.org/abs/1710.06081",
    )
    yield AttackSpec(
        name="ti-fgsm",
        target="advdistill_attacks.transfer:Transfer",
        config="advdistill_attacks.configs:TIFGSM",
        norms={"linf", "l2"},
        objective=True,
        summary="Gradient signs smoothed over pixels, made to transfer",
        reference="https://arxiv.org/abs/1904.02884",
    )
    yield AttackSpec(
        name="di-fgsm",
        target="advdistill_attacks.transfer:Transfer",
        config="advdistill_attacks.configs:DIFGSM",
        norms={"linf", "l2"},
        objective=True,
        summary="Gradient signs through images of random size and place, made to transfer",
        reference="https://arxiv.org/abs/1803.06978",
    )
    yield AttackSpec(
        name="ti-mi-di-fgsm",
        target="advdistill_attacks.transfer:Transfer",
        config="advdistill_attacks.configs:TIMIDIFGSM",
        norms={"linf", "l2"},
        objective=True,
        summary="Smoothing, momentum and diversity together, made to transfer",
        reference="https://arxiv.org/abs/1904.02884",
    )
    yield AttackSpec(
        name="noise",
        target="advdistill_attacks.noise:RandomNoise",
        config="advdistill_attacks.configs:RandomNoise",
        norms={"linf", "l2", "l1"},
        asks="nothing",
        summary="Noise and random corners: what no attack that asks anything may lose to",
    )
    yield AttackSpec(
        name="apgd",
        target="advdistill_attacks.apgd:APGD",
        config="advdistill_attacks.configs:APGD",
        norms={"linf", "l2", "l1"},
        objective=True,
        summary="Gradient ascent with momentum that halves its own steps",
        reference="https://arxiv.org/abs/2003.01690",
    )
    yield AttackSpec(
        name="apgd-t",
        target="advdistill_attacks.apgd:APGDTargeted",
        config="advdistill_attacks.configs:APGDTargeted",
        norms={"linf", "l2", "l1"},
        targeted=True,
        summary="apgd towards one class after the other",
        reference="https://arxiv.org/abs/2003.01690",
    )
    yield AttackSpec(
        name="autoattack",
        target="advdistill_attacks.ensemble:Ensemble",
        config="advdistill_attacks.configs:AutoAttack",
        norms={"linf", "l2", "l1"},
        wraps="attacks",
        summary="The standard ensemble: apgd-ce, apgd-t, fab-t, square; or rand, or a list of one's own",
        reference="https://arxiv.org/abs/2003.01690",
    )
    yield AttackSpec(
        name="apgd-ce-apgd-t",
        target="advdistill_attacks.ensemble:Ensemble",
        config="advdistill_attacks.configs:APGDPair",
        norms={"linf", "l2", "l1"},
        wraps="attacks",
        summary="The first two of the standard ensemble",
        reference="https://arxiv.org/abs/2003.01690",
    )
    yield AttackSpec(
        name="eot",
        target="advdistill_attacks.wrappers:EOT",
        config="advdistill_attacks.configs:EOT",
        norms={"linf", "l2", "l1"},
        objective=True,
        wraps="attack",
        summary="Any attack, each gradient the mean over several evaluations",
        reference="https://arxiv.org/abs/1707.07397",
    )
    yield AttackSpec(
        name="bpda",
        target="advdistill_attacks.wrappers:BPDA",
        config="advdistill_attacks.configs:BPDA",
        norms={"linf", "l2", "l1"},
        wraps="attack",
        summary="Any attack, with the gradients of a stand-in",
        reference="https://arxiv.org/abs/1802.00420",
    )
    yield AttackSpec(
        name="unrolled",
        target="advdistill_attacks.wrappers:Unrolled",
        config="advdistill_attacks.configs:Unrolled",
        norms={"linf", "l2", "l1"},
        objective=True,
        wraps="attack",
        summary="Any attack, through the optimisation that a model runs on its input",
    )
