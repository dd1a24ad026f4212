"""The search space of a sweep: combinations, ranges, and what names a trial."""

import dataclasses
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tailor.errors import BadInput
from tailor.options import Images, Sweep
from tailor.settings import Recipe
from tailor.space import space_of
from tailor.units import short

SELECT = Recipe(epochs=2, select="last", schedule="constant")


def options(**changed):
    plain = Sweep(
        out=Path("sweep"),
        task=("digits",),
        backbone=("small_resnet",),
        weights="random",
        seed=(0,),
        images=Images(px=16),
        train=SELECT,
    )
    return dataclasses.replace(plain, **changed)


def units(**changed):
    space = space_of(options(**changed))
    return [unit for point in space.points() for unit in space.units(point)]


def test_a_grid_is_the_product_of_what_applies():
    space = space_of(
        options(
            task=("digits", "characters"),
            method=("taps", "probe"),
            lam=(0.1, 1.0, 10.0),
            rule=("count=3", "share=0.5"),
            seed=(0, 1),
        )
    )
    # Per task and seed: taps at 3 λ by 2 rules, and one probe.
    assert len(space.points()) == 2 * 2 * (3 * 2 + 1)
    assert space.distributions()["lam"] == CategoricalDistribution([0.1, 1.0, 10.0])


def test_a_reference_is_trained_as_long_as_both_stages_together():
    (reference,) = units(method=("finetune",), retrain_epochs=5)
    assert (reference.train.epochs, reference.train.schedule) == (7, "cosine")
    (student,) = units(lam=(1.0,), retrain_epochs=5)
    assert (student.train.epochs, student.train.schedule, student.train.select) == (
        2,
        "constant",
        "last",
    )
    assert (student.retrain.epochs, student.retrain.schedule) == (5, "cosine")


def test_a_key_follows_from_content_and_not_from_place():
    (unit,) = units(lam=(1.0,))
    (elsewhere,) = units(
        lam=(1.0,), out=Path("other"), images=Images(px=16, root="/data", workers=7), processes=3
    )
    assert elsewhere.key() == unit.key()
    assert elsewhere.stem() == unit.stem()


@pytest.mark.parametrize(
    "changed",
    [
        {"lam": (2.0,)},
        {"seed": (1,)},
        {"retrain_epochs": 3},
        {"rule": ("count=3",)},
        {"option": ("price=macs",)},
        {"images": Images(px=16, flip=True)},
        {"train": dataclasses.replace(SELECT, lr=0.5)},
        {"weights": "random", "backbone": ("wide_resnet26",)},
    ],
)
def test_a_key_differs_if_anything_differs_that_the_result_depends_on(changed):
    (unit,) = units(lam=(1.0,))
    (other,) = units(**({"lam": (1.0,)} | changed))
    assert other.key() != unit.key()


def test_the_order_of_values_changes_no_choice_of_the_study():
    one = space_of(options(method=("probe", "taps"), lam=(0.1, 1.0), seed=(0, 1)))
    other = space_of(options(method=("taps", "probe"), lam=(1.0, 0.1), seed=(1, 0)))
    assert one.distributions() == other.distributions()


@pytest.mark.parametrize(
    ("task", "name"),
    [("svhn", "svhn"), ("npz:/a/flowers/", "flowers"), ("folder:/my pets?", "my_pets_"),
     ("folder:/", "task"), ("torchvision:DTD", "DTD")],
)  # fmt: skip
def test_a_folder_is_named_after_its_task_and_stays_inside_the_sweep(task, name):
    assert short(task) == name


def test_stages_that_differ_only_in_pruning_share_the_adapted_run():
    three, five = units(lam=(1.0,), rule=("count=3", "count=5"))
    assert three.stages(Path("x"))[0] == five.stages(Path("x"))[0]
    assert three.stages(Path("x"))[1].name.endswith("-count3")
    assert three.stages(Path("x"))[2].name.endswith("-count3-retrained4")


@pytest.mark.parametrize(("until", "stages"), [("adapt", 1), ("pruned", 2), ("retrained", 3)])
def test_a_chain_ends_where_it_was_told(until, stages):
    (unit,) = units(lam=(1.0,), until=until)
    assert len(unit.stages(Path("x"))) == stages


def test_options_go_to_the_method_or_task_that_they_name():
    found = units(
        task=("digits", "characters"),
        method=("taps", "nettailor"),
        lam=(1.0,),
        option=("taps.price=macs", "nettailor.max_skip=2", "characters.flip=true"),
    )
    told = {(u.data.task, u.method): u for u in found}
    assert told["digits", "taps"].settings.price == "macs"
    assert told["digits", "nettailor"].settings.price != "params"
    assert told["digits", "nettailor"].settings.max_skip == 2
    assert not told["digits", "taps"].data.flip
    assert told["characters", "taps"].data.flip


def test_a_student_that_distils_brings_its_teacher():
    (taught,) = units(method=("nettailor",), lam=(1.0,))
    (reference,) = units(method=("finetune",))
    assert taught.teacher == reference
    (alone,) = units(method=("nettailor",), lam=(1.0,), option=("distill=0",))
    assert alone.teacher is None


def test_a_rule_may_hold_several_options_and_a_budget_its_commas():
    (unit,) = units(lam=(1.0,), rule=("budget=params=0.2,macs=0.6,proxy_threshold=0.1",))
    assert unit.rule == (("budget", "params=0.2,macs=0.6"), ("proxy_threshold", 0.1))


def test_ranges_are_logarithmic_over_a_decade_whole_for_whole_options_and_choices_for_words():
    space = space_of(
        options(search=("lam=0.01..1", "lr=0.01..0.05", "batch=16..64", "price=params,macs"))
    )
    assert space.distributions() == {
        "lam": FloatDistribution(0.01, 1, log=True),
        "lr": FloatDistribution(0.01, 0.05),
        "batch": IntDistribution(16, 64),
        "price": CategoricalDistribution(["macs", "params"]),
    }
    (unit,) = space.units({"lam": 0.5, "lr": 0.02, "batch": 32, "price": "macs"})
    assert (unit.settings.lam, unit.settings.price) == (0.5, "macs")
    assert (unit.train.lr, unit.train.batch, unit.retrain.lr) == (0.02, 32, 0.02)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": ()}, "no task to sweep over"),
        ({"seed": (1, 1)}, "seed 1 is given twice"),
        ({"search": ("lamb=1..2",)}, "unknown option 'lamb': did you mean lam"),
        ({"search": ("lam=1..2",), "lam": (1.0,)}, "not --lam"),
        ({"search": ("lam=1..inf",)}, "two finite ends"),
        ({"search": ("price=params",)}, "two or more choices"),
        ({"search": ("price=gold,silver",)}, "'gold' is no value of price"),
        ({"option": ("flip=true",)}, "unknown option 'flip'"),
        ({"option": ("digits.flop=true",)}, "unknown option 'flop'"),
        ({"option": ("digits.flip=maybe",)}, "give flip=true or flip=false"),
        ({"option": ("letters.flip=true",)}, "METHOD.NAME=VALUE or TASK.NAME=VALUE"),
        ({"rule": ("count=many",)}, "'many' is no value of count"),
        ({"rule": ("3",)}, "such as count=11"),
        ({"rule": ("count=3",), "until": "adapt"}, "nothing is pruned"),
        ({"lam": (-1.0,)}, "a price cannot be negative"),
        ({"train": dataclasses.replace(SELECT, epochs=0)}, "epochs is 0"),
    ],
)
def test_a_space_that_cannot_work_is_refused(changed, said):
    with pytest.raises(BadInput, match=said):
        space_of(options(**changed))
