"""The Visual Decathlon's facts and score, against numbers computed elsewhere."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tailor.decathlon import DOMAINS, accuracy_for, images_for, points, score
from tailor.decathlon_table import BEST, ORDER, PUBLISHED
from tailor.errors import BadInput
from tailor.listing import entries
from tailor.options import Images
from tailor.view import View

# Computed from the printed accuracies with the formula, outside of this program.
CALCULATED = {
    "scratch": 1626.685,
    "scratch+": 1826.663,
    "feature extractor": 545.404,
    "fine-tuning": 2500.000,
    "learning without forgetting": 2517.175,
    "batch-norm adaptation": 1361.623,
    "series adapters, 2017": 2119.013,
    "series adapters, 2017, decay": 2621.322,
    "series adapters, 2017, all fine-tuned": 2644.000,
    "series adapters, 2017, domain predicted": 2503.267,
    "series adapters, 2017, large": 3131.069,
    "series adapters": 3158.176,
    "parallel adapters": 3412.298,
    "parallel adapters, SVD": 3396.809,
    "deep adaptation networks": 2852.455,
    "Piggyback": 2840.225,
}
MEANS = {
    "scratch": 70.32,
    "scratch+": 71.07,
    "feature extractor": 54.28,
    "fine-tuning": 76.51,
    "learning without forgetting": 76.93,
    "batch-norm adaptation": 71.76,
    "series adapters, 2017": 73.88,
    "series adapters, 2017, decay": 76.89,
    "series adapters, 2017, all fine-tuned": 77.17,
    "series adapters, 2017, domain predicted": 76.74,
    "series adapters, 2017, large": 79.43,
    "series adapters": 77.17,
    "parallel adapters": 78.07,
    "parallel adapters, SVD": 78.36,
    "deep adaptation networks": 77.01,
    "Piggyback": 76.60,
    "MTAN": 77.25,
    "NetTailor": 79.64,
    "URL": 79.40,
    "URL with adapters": 80.52,
}
EMAX = (80.26, 79.32, 35.76, 14.36, 88.94, 4.94, 37.18, 24.62, 6.90, 97.60)
ALPHA = (
    1552.3930, 1589.4051, 7819.9681, 48494.3475, 1264.1708,
    409775.6069, 7234.0454, 16497.7190, 210039.9076, 1049.7850,
)  # fmt: skip
PER_DOMAIN = {
    "series adapters, 2017, decay": (
        247.51, 269.66, 224.93, 329.26, 268.31, 258.16, 257.04, 334.54, 192.84, 239.06,
    ),
    "parallel adapters": (
        255.64, 301.17, 244.44, 400.70, 288.48, 764.74, 345.69, 315.55, 248.55, 247.34,
    ),
    "feature extractor": (247.51, 1.10, 0, 0, 148.82, 0, 85.48, 0, 0, 62.50),
}  # fmt: skip
ROWS = {row.method: row for row in PUBLISHED}


@pytest.mark.parametrize("method", CALCULATED)
def test_a_published_row_has_the_score_of_the_formula(method):
    assert score(ROWS[method].accuracy).total == pytest.approx(CALCULATED[method], abs=0.01)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.method)
def test_a_published_row_agrees_with_what_was_printed_beside_it(row):
    assert score(row.accuracy).total == pytest.approx(row.score, abs=3)
    assert sum(row.accuracy.values()) / 10 == pytest.approx(MEANS[row.method], abs=0.011)


@pytest.mark.parametrize("method", PER_DOMAIN)
def test_points_of_each_domain(method):
    found = score(ROWS[method].accuracy).domains
    assert [found[name].score for name in ORDER] == pytest.approx(PER_DOMAIN[method], abs=0.01)


def test_largest_errors_and_weights_of_the_ten_domains():
    domains = [DOMAINS[name] for name in ORDER]
    assert [100 * d.emax for d in domains] == pytest.approx(EMAX, abs=1e-9)
    assert [d.alpha for d in domains] == pytest.approx(ALPHA, abs=1e-4)


def test_every_domain_is_in_the_list_of_tasks():
    found = entries("tasks", "decathlon:*")
    assert [e["name"] for e in found] == [f"decathlon:{name}" for name in DOMAINS]
    assert found[6]["kind"] == "1623 classes, 72 px"


def test_domains_are_numbered_by_the_alphabet():
    assert list(DOMAINS) == sorted(DOMAINS)
    assert [d.number for d in DOMAINS.values()] == list(range(1, 11))
    assert sorted(ORDER) == list(DOMAINS)


def test_numbers_of_images_and_classes():
    # Train and validation together, and test, as counted in the published annotations.
    together = (6667, 50000, 29400, 3760, 39209, 1281167, 24345, 73257, 9537, 2040)
    assert tuple(d.train + d.val for d in DOMAINS.values()) == together
    train = (3334, 40000, 23520, 1880, 31367, 1232167, 17853, 47217, 7585, 1020)
    assert tuple(d.train for d in DOMAINS.values()) == train
    tests = (3333, 10000, 19600, 1880, 12630, 48238, 8115, 26032, 3783, 6149)
    assert tuple(d.test for d in DOMAINS.values()) == tests
    assert sum(tests) == 139760
    classes = (100, 100, 2, 47, 43, 1000, 1623, 10, 101, 102)
    assert tuple(d.classes for d in DOMAINS.values()) == classes
    assert DOMAINS["omniglot"].train == 11 * 1623  # eleven images of each character
    assert DOMAINS["omniglot"].val == 4 * 1623


def test_fine_tuning_earns_250_and_perfection_1000_in_every_domain():
    for name, domain in DOMAINS.items():
        assert points(domain.baseline, domain.baseline) == pytest.approx(250), name
        assert points(100, domain.baseline) == pytest.approx(1000), name
        assert points(2 * domain.baseline - 100, domain.baseline) == pytest.approx(0, abs=1e-9)
        assert points(0, domain.baseline) == 0


def test_the_inverse_finds_the_accuracy_again():
    # Parallel adapters, traffic signs: 764.74 points are 99.38 %.
    assert accuracy_for(764.74, 97.53) == pytest.approx(99.38, abs=1e-3)
    for accuracy in (95.2, 97.53, 99.0, 100.0):
        found = accuracy_for(points(accuracy, 97.53), 97.53)
        assert found == pytest.approx(accuracy, abs=1e-9)


def test_any_subset_is_scored_and_the_rest_named():
    parallel = ROWS["parallel adapters"].accuracy
    found = score({name: parallel[name] for name in ("dtd", "aircraft")})
    assert found.total == pytest.approx(288.48 + 301.17, abs=0.02)
    assert list(found.domains) == ["aircraft", "dtd"]
    assert found.missing == (
        "cifar100", "daimlerpedcls", "gtsrb", "imagenet12", "omniglot", "svhn", "ucf101",
        "vgg-flowers",
    )  # fmt: skip
    # Published rows are compared over the same two domains: URL's 353.52 + 418.75 by hand below.
    url = next(row for row in found.published if row.method == "URL")
    aircraft = 1000 * ((0.7932 - 0.2565) / 0.7932) ** 2
    dtd = 1000 * ((0.8894 - 0.4043) / 0.8894) ** 2
    assert url.total == pytest.approx(aircraft + dtd)


def test_the_best_published_row_is_the_highest_whose_accuracies_are_known():
    assert BEST.method == "URL with adapters"
    assert BEST.score == 4005 == max(row.score for row in PUBLISHED)


def test_share_of_the_loss_says_where_the_points_behind_the_best_lie():
    found = score(ROWS["parallel adapters"].accuracy)
    behind = score(BEST.accuracy).total - found.total
    assert sum(d.share for d in found.domains.values()) == pytest.approx(1)
    assert sum(d.lost for d in found.domains.values()) == pytest.approx(behind)
    # Aircraft by hand: 77.17 % earn 1000 * ((79.32 - 22.83) / 79.32)^2, less our 301.17.
    best = 1000 * ((79.32 - 22.83) / 79.32) ** 2
    assert found.domains["aircraft"].lost == pytest.approx(best - 301.17, abs=0.01)
    assert found.domains["aircraft"].share == pytest.approx((best - 301.17) / behind, abs=1e-4)
    # Traffic signs are read better than by the best row: 99.38 against 98.75.
    assert found.domains["gtsrb"].lost < 0
    assert found.domains["gtsrb"].share < 0


def test_ahead_of_the_best_there_is_no_share():
    found = score(dict.fromkeys(DOMAINS, 100.0))
    assert found.total == pytest.approx(10000)
    assert found.rank == 1
    assert {d.share for d in found.domains.values()} == {None}
    assert score(BEST.accuracy).domains["dtd"].share is None


def test_the_place_counts_published_rows_with_more_points():
    assert score(ROWS["parallel adapters"].accuracy).rank == 4  # URL + RA, NetTailor, URL
    assert score(dict.fromkeys(DOMAINS, 0.0)).rank == 21


def test_a_baseline_of_ones_own_brings_its_own_domains():
    found = score({"teapots": 90.0, "cups": 60.0}, {"cups": 60.0, "teapots": 80.0, "jugs": 50.0})
    assert list(found.domains) == ["cups", "teapots"]
    assert found.domains["cups"].score == pytest.approx(250)
    # Emax is 0.4, the error 0.1: 1000 * (0.3 / 0.4)^2.
    assert found.domains["teapots"].score == pytest.approx(562.5)
    assert found.missing == ("jugs",)
    assert (found.best, found.rank, found.published) == (None, None, ())
    assert found.domains["cups"].best is found.domains["cups"].share is None


@pytest.mark.parametrize(
    ("accuracy", "baseline", "message"),
    [
        ({"flowers": 50}, None, "unknown domain 'flowers': did you mean vgg-flowers"),
        ({"cups": 50}, {"jugs": 50}, "unknown domain 'cups'"),
        ({"dtd": 101}, None, "accuracy of dtd is 101: give percent"),
        ({"dtd": -0.1}, None, "accuracy of dtd is -0.1"),
        ({"dtd": math.nan}, None, "accuracy of dtd is nan"),
        ({"dtd": "55"}, None, "accuracy of dtd is '55'"),
        ({"dtd": True}, None, "accuracy of dtd is True"),
        ({"cups": 50}, {"cups": 100}, "baseline of cups is 100 %: twice no error is no scale"),
        ({"cups": 50}, {"cups": 50, "jugs": None}, "baseline of jugs is None"),
        ({}, None, "no domain has an accuracy"),
        ({"cups": 50}, {}, "the baseline names no domain"),
    ],
)
def test_what_cannot_be_scored_is_refused(accuracy, baseline, message):
    with pytest.raises(BadInput, match=message):
        score(accuracy, baseline)


@pytest.mark.parametrize("recipe", ["published", "nettailor"])
@pytest.mark.parametrize("name", DOMAINS)
def test_every_recipe_is_a_view_of_a_domain(name, recipe):
    fields = images_for(name, recipe)
    options = dataclasses.asdict(Images(**fields))
    shown = {f.name for f in dataclasses.fields(View)} & options.keys()
    view = View(**{k: options[k] for k in shown})
    assert view.side == 72
    assert view.px in (64, 72)
    assert options["normalize"] == "task"


def test_published_recipe_shows_signs_and_characters_whole_and_never_mirrored():
    whole = {name for name in DOMAINS if images_for(name)["crop"] == "none"}
    assert whole == {"gtsrb", "omniglot", "svhn"}
    for name in DOMAINS:
        fields = images_for(name)
        assert fields["flip"] == (name not in whole)
        assert fields["px"] == (72 if name in whole else 64)


def test_nettailors_recipe_as_its_program_has_it():
    def seen(name: str) -> tuple[object, ...]:
        found = images_for(name, "nettailor")
        keys = ("px", "crop", "flip", "squash", "pad", "color", "contrast", "saturation")
        return tuple(found.get(key) for key in keys)

    nothing = (None,) * 5
    assert seen("svhn") == seen("omniglot") == (64, "random", False, *nothing)
    shifted = (72, "reflect", True, True, 8, None, None, None)
    assert seen("aircraft") == seen("cifar100") == seen("daimlerpedcls") == shifted
    assert seen("gtsrb") == (72, "reflect", False, True, 8, 0.5, 0.2, 0.2)
    assert seen("dtd") == (72, "none", True, *nothing)
    for name in ("ucf101", "vgg-flowers", "imagenet12"):
        assert seen(name) == (64, "random", True, *nothing)


def test_unknown_domains_and_recipes_are_named():
    with pytest.raises(BadInput, match="unknown domain 'flowers'"):
        images_for("flowers")
    with pytest.raises(BadInput, match="recipe is 'mine'"):
        images_for("dtd", "mine")
