"""Agreement of choices, against sets small enough to count by hand."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from scipy.stats import spearmanr

from analysis import agreement
from analysis.rows import read_runs
from analysis.statistic import chance, jaccard, spearman
from tailor.errors import BadInput
from tests.synthetic_runs import write_nettailor, write_run

LAYERS = [
    {"name": name, "kind": "conv", "params": params, "macs": 10}
    for name, params in (("a", 100), ("b", 200), ("c", 300), ("d", 400))
]


def states(on: str, scores=(0.4, 0.3, 0.2, 0.1)):
    return [
        layer | {"on": layer["name"] in on, "score": score, "change": 0.1}
        for layer, score in zip(LAYERS, scores, strict=True)
    ]


def choices(root, chosen, *, task="digits", lam=0.1):
    """One run per choice, each with a seed of its own."""
    return [
        write_run(root / f"{task}-{lam}-{seed}", "taps", lam=lam, seed=seed, task=task,
                  layer_states=states(on))
        for seed, on in enumerate(chosen)
    ]  # fmt: skip


def table(paths):
    return agreement.agreement_table(agreement.read_choices(read_runs(paths)))


def test_the_index_is_the_common_part_and_empty_sets_agree():
    assert jaccard("ab", "bcd") == 1 / 4
    assert jaccard("", "") == 1.0
    assert jaccard("", "a") == 0.0
    weights = {"a": 100, "b": 200, "c": 300, "d": 400}
    assert jaccard("ab", "bcd", weights) == 200 / 1000


def test_chance_by_hand():
    assert chance(1, 1, 2) == pytest.approx(1 / 2)
    assert chance(1, 2, 3) == pytest.approx(2 / 3 * 1 / 2)
    assert chance(2, 2, 3) == pytest.approx(2 / 3 * 1 / 3 + 1 / 3 * 1)
    assert (chance(0, 0, 3), chance(0, 2, 3), chance(3, 3, 3)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [*itertools.combinations_with_replacement(range(6), 2)])
def test_chance_is_the_mean_over_all_pairs_of_subsets(a, b):
    everything = [
        jaccard(ours, theirs)
        for ours in itertools.combinations("abcde", a)
        for theirs in itertools.combinations("abcde", b)
    ]
    assert chance(a, b, 5) == pytest.approx(math.fsum(everything) / len(everything))


def test_a_subset_larger_than_the_whole_is_refused():
    with pytest.raises(ValueError, match="sizes from 0 to 3"):
        chance(4, 1, 3)


def test_rank_correlation_with_ties_is_that_of_scipy():
    a = {"x": 1.0, "y": 2.0, "z": 2.0, "u": 5.0, "only here": 0.0}
    b = {"x": 3.0, "y": 1.0, "z": 4.0, "u": 4.0}
    expected = spearmanr([1, 2, 2, 5], [3, 1, 4, 4]).statistic
    assert spearman(a, b) == pytest.approx(expected)
    assert math.isnan(spearman(a, dict.fromkeys(a, 7.0)))
    assert math.isnan(spearman({"x": 1, "y": 2}, {"x": 1, "y": 2}))


def test_seeds_by_hand(tmp_path):
    line = table(choices(tmp_path, ["ab", "ac", "ab"])).iloc[0]
    # Pairs: ab/ac 1/3, ab/ab 1, ac/ab 1/3.
    assert line["jaccard"] == pytest.approx(5 / 9)
    # Of 4 layers 2 and 2: overlap 0, 1, 2 with 1/6, 4/6, 1/6.
    assert line["chance"] == pytest.approx(4 / 6 * 1 / 3 + 1 / 6)
    assert line["above"] == pytest.approx((10 / 18 - 7 / 18) / (11 / 18))
    # a is 100 of 600 parameters in either.
    assert line["weighted"] == pytest.approx((1 / 6 + 1 + 1 / 6) / 3)
    # ab are the two smallest, ac has one of them: pairs (1 + 1/3) / 2, 1, (1/3 + 1) / 2.
    assert line["cheapest"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert (line["pairs"], line["size"], line["spearman"]) == (3, 2, pytest.approx(1))


def test_tasks_are_compared_run_by_run_at_the_same_price_only(tmp_path):
    paths = choices(tmp_path, ["ab", "ab"]) + choices(tmp_path, ["ac", "cd"], task="svhn")
    paths += choices(tmp_path, ["abcd"], task="svhn", lam=0.3)
    found = table(paths)
    assert list(found.index) == [
        ("taps λ=0.1", "digits", "digits"),
        ("taps λ=0.1", "digits", "svhn"),
        ("taps λ=0.1", "svhn", "svhn"),
    ]
    between = found.loc[("taps λ=0.1", "digits", "svhn")]
    assert between["pairs"] == 4
    assert between["jaccard"] == pytest.approx((2 * 1 / 3 + 2 * 0) / 4)
    assert found.loc[("taps λ=0.1", "svhn", "svhn"), "jaccard"] == pytest.approx(1 / 3)


def test_two_tasks_of_one_seed_each_can_be_compared(tmp_path):
    found = table(choices(tmp_path, ["ab"]) + choices(tmp_path, ["b"], task="svhn"))
    assert found["jaccard"].to_dict() == {("taps λ=0.1", "digits", "svhn"): 0.5}


def test_nothing_adapted_agrees_with_nothing_adapted(tmp_path):
    line = table(choices(tmp_path, ["", ""])).iloc[0]
    assert (line["jaccard"], line["chance"]) == (1, 1)
    assert math.isnan(line["above"])


def test_only_the_last_stage_counts(tmp_path):
    paths = choices(tmp_path, ["abcd", "abcd"])
    for seed, on in enumerate(("ab", "bc")):
        out = tmp_path / f"pruned-{seed}"
        options = {"lam": 0.1, "seed": seed, "stage": "pruned"}
        paths.append(write_run(out, "taps", layer_states=states(on), **options))
    found = table(paths)
    assert found["jaccard"].to_dict() == {("taps λ=0.1", "digits", "digits"): pytest.approx(1 / 3)}


def retrained(root, first, seed):
    """A student without scores that came from ``first``."""
    none = [state | {"score": None} for state in states("ab")]
    out = root / f"retrained-{seed}"
    write_run(out, "taps", lam=0.1, seed=seed, stage="retrained", layer_states=none)
    setup = {"schema": 1, "verb": "retrain", "config": {"run": str(first)}}
    (out / "run.json").write_text(json.dumps(setup))
    return out


def test_scores_of_a_retrained_student_are_those_it_was_adapted_with(tmp_path):
    scores = ((0.4, 0.3, 0.2, 0.1), (0.3, 0.4, 0.2, 0.1))
    paths = []
    for seed, told in enumerate(scores):
        first = write_run(tmp_path / f"a{seed}", "taps", lam=0.1, seed=seed,
                          layer_states=states("ab", told))  # fmt: skip
        paths.append(retrained(tmp_path, first, seed))
    # Ranks 4 3 2 1 and 3 4 2 1: 1 - 6 * 2 / (4 * 15).
    assert table(paths).iloc[0]["spearman"] == pytest.approx(0.8)


def test_the_run_before_is_found_beside_where_both_were_moved(tmp_path):
    first = write_run(tmp_path / "here" / "a", "taps", lam=0.1, layer_states=states("ab"))
    out = retrained(tmp_path / "here", first, 0)
    (tmp_path / "here").rename(tmp_path / "there")
    run = read_runs([tmp_path / "there" / out.name])[0]
    assert agreement.scores_of(run) == {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
    (tmp_path / "there" / "a" / "result.json").unlink()
    assert agreement.scores_of(run) == {}


def test_blocks_that_were_kept_are_the_choice_of_nettailor(tmp_path):
    paths = [
        write_nettailor(tmp_path / str(seed), depth=18, stage="pruned", remove=3, seed=seed)
        for seed in range(2)
    ]
    runs = read_runs(paths)
    kept = [{b["name"] for b in run.result["blocks"] if b["kept"]} for run in runs]
    line = table(paths).iloc[0]
    assert line["size"] == 5
    assert line["jaccard"] == len(kept[0] & kept[1]) / len(kept[0] | kept[1])
    assert line["chance"] == pytest.approx(chance(5, 5, 8))


def test_what_cannot_be_compared_is_one_line(tmp_path):
    alone = choices(tmp_path, ["ab"])
    with pytest.raises(BadInput, match="1 run of different settings cannot be compared"):
        agreement.answer(read_runs(alone))
    with pytest.raises(BadInput, match="none of these runs chose layers or blocks"):
        agreement.answer(read_runs([write_run(tmp_path / "probe", "probe")]))
    mixed = [*alone, write_nettailor(tmp_path / "nt")]
    with pytest.raises(BadInput, match="some of these runs chose layers and some blocks"):
        agreement.answer(read_runs(mixed))


def test_the_matrix_shows_index_and_chance(tmp_path):
    paths = choices(tmp_path, ["ab", "ac"]) + choices(tmp_path, ["cd"], task="svhn")
    answer = agreement.answer(read_runs(paths))
    texts = [text.get_text() for text in answer.figure.axes[0].texts]
    assert texts == ["0.33\n(0.39)", "0.17\n(0.39)", "0.17\n(0.39)"]  # svhn has no second seed
    assert answer.figure.axes[1].get_xlabel() == "Chosen, of 4"
