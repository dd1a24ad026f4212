"""Methods over domains: names, means, sizes and scores against hand counts; what is drawn."""

from __future__ import annotations

import math

import pytest

from analysis.decathlon import answer
from analysis.rows import read_runs
from tailor.decathlon import DOMAINS, PUBLISHED
from tailor.errors import BadInput
from tests.synthetic_runs import write_run


def write(root, method, accuracy, *, settings=None, seed=0, added=0.1, stage=None, **changes):
    """Runs of one method and seed, one per domain; accuracies in percent."""
    paths = []
    lam = changes.pop("lam", None)
    settings = (settings or {}) | ({} if lam is None else {"lam": lam})
    for domain, percent in accuracy.items():
        told = "-".join([method, *map(str, settings.values()), str(seed), stage or ""])
        config = {"settings": settings, "data": {"task": changes.get("spec", "npz:") + domain}}
        config["train"] = {"lr": changes.get("lr", 0.1), "seed": seed}
        params = {"universal": 1000, "task": int(1000 * added), "head": 10, "multiple": 1 + added}
        facts = {"config": config, "params": params, "test": percent / 100, "val": 0.5}
        facts |= {k: v for k, v in changes.items() if k in ("test", "backbone")}
        place = root / domain / f"{told}{changes.get('lr', '')}"
        run = write_run(
            place, method, seed=seed, lam=lam, stage=stage or "adapt", task=domain, **facts
        )
        paths.append(run)
    return paths


def asked(root, **options):
    """The answer about all runs below a folder."""
    runs = sorted(file.parent for file in root.rglob("result.json"))
    return answer(read_runs(runs), **options)


def test_the_score_is_counted_for_each_seed_and_then_averaged(tmp_path):
    # Fine-tuning errs 10 %, so a domain earns 1000 * ((0.2 - error) / 0.2)^2:
    # 562.5 for 5 % and 250 for 10 % error. Mean 406.25, deviation (562.5 - 250) / sqrt 2.
    write(tmp_path, "finetune", {"a": 90, "b": 90})
    write(tmp_path, "lora", {"a": 95, "b": 95}, seed=0)
    write(tmp_path, "lora", {"a": 90, "b": 90}, seed=1)
    line = asked(tmp_path).table.loc["lora"]
    assert line["score"] == pytest.approx(2 * 406.25)
    assert line["score ±"] == pytest.approx(2 * 312.5 / math.sqrt(2))
    assert (line["seeds"], line["a"], line["mean"]) == (2, 92.5, 92.5)
    assert line["a ±"] == line["mean ±"] == pytest.approx(5 / math.sqrt(2))


def test_fine_tuning_is_averaged_over_its_seeds_before_others_are_scored(tmp_path):
    for seed, percent in enumerate((88, 92)):
        write(tmp_path, "finetune", {"a": percent}, seed=seed)
    write(tmp_path, "lora", {"a": 90})
    assert asked(tmp_path).table.loc["lora", "score"] == pytest.approx(250)


def test_domains_share_one_trunk(tmp_path):
    write(tmp_path, "finetune", {"a": 90, "b": 90}, added=1.0)
    write(tmp_path, "lora", {"a": 90}, added=0.1)
    write(tmp_path, "lora", {"b": 90}, added=0.3)
    table = asked(tmp_path).table
    assert table.loc["finetune", "params"] == 3
    assert table.loc["lora", "params"] == pytest.approx(1.4)


def test_settings_that_tell_runs_apart_are_named(tmp_path):
    write(tmp_path, "finetune", {"a": 90})
    for kind, select in (("series", False), ("parallel", False), ("parallel", True)):
        settings = {"select": select, "adapters": kind, "rank": None, "dropout": 0.5}
        write(
            tmp_path, "residual_adapters", {"a": 90}, settings=settings, lam=3 if select else None
        )
    assert set(asked(tmp_path).table.index) == {
        "finetune",
        "residual_adapters series",
        "residual_adapters parallel",
        "residual_adapters parallel select λ=3",
    }


def test_runs_that_were_trained_otherwise_are_no_seeds_of_one_setting(tmp_path):
    write(tmp_path, "finetune", {"a": 90})
    write(tmp_path, "lora", {"a": 80}, lr=0.1)
    write(tmp_path, "lora", {"a": 90}, lr=0.5)
    assert set(asked(tmp_path).table.index) == {"finetune", "lora lr=0.1", "lora lr=0.5"}


def test_of_a_pruned_student_the_last_stage_counts(tmp_path):
    write(tmp_path, "finetune", {"a": 90})
    for stage, percent in (("adapt", 95), ("pruned", 10), ("retrained", 93)):
        write(tmp_path, "taps", {"a": percent}, stage=stage, lam=0.3)
    table = asked(tmp_path).table
    assert list(table.index) == ["taps λ=0.3", "finetune"]  # the best score first
    assert table.loc["taps λ=0.3", "a"] == pytest.approx(93)


def test_a_method_that_lacks_a_domain_is_marked_and_comes_last(tmp_path):
    write(tmp_path, "finetune", {"a": 90, "b": 90})
    write(tmp_path, "lora", {"a": 99})
    found = asked(tmp_path)
    line = found.table.loc["lora"]
    assert list(found.table.index) == ["finetune", "lora"]
    assert line["lacks"] == "b"
    assert math.isnan(line["mean"])
    assert line["score"] == pytest.approx(1000 * (0.19 / 0.2) ** 2)
    assert "lora lacks b: its score is partial" in found.text
    assert found.shown.set_index("Setting").loc["lora", "Score"] == "902*"


def test_a_domain_without_error_has_no_score(tmp_path):
    write(tmp_path, "finetune", {"a": 90, "b": 100})
    write(tmp_path, "lora", {"a": 95, "b": 99})
    found = asked(tmp_path)
    assert found.table.loc["lora", "score"] == pytest.approx(562.5)
    assert "b: in no score" in found.text
    assert "-1.0" in [text.get_text() for text in found.figure.axes[1].texts]


def test_without_fine_tuning_there_is_no_score(tmp_path):
    write(tmp_path, "lora", {"a": 95})
    found = asked(tmp_path)
    assert math.isnan(found.table.loc["lora", "score"])
    assert "these runs hold no finetune to score against" in found.text
    assert found.figure.axes[0].get_ylabel() == "Mean test accuracy, %"


def test_the_ten_domains_stand_beside_the_published_results(tmp_path):
    tuned = {name: domain.baseline for name, domain in DOMAINS.items()}
    write(tmp_path, "finetune", tuned, spec="decathlon:", added=1.0)
    found = asked(tmp_path)
    assert found.table.loc["finetune", "score"] == pytest.approx(2500)
    assert found.table.loc["finetune", "params"] == 11
    # Computed from the row's printed accuracies; the page of the challenge says 3412.
    parallel = found.table.loc["published: parallel adapters"]
    assert parallel["score"] == pytest.approx(3412.298, abs=0.01)
    assert (parallel["params"], parallel["aircraft"]) == (2, 64.21)
    assert len(found.table) == 1 + len(PUBLISHED)
    assert len(found.figure.axes[1].get_yticks()) == 1  # own settings only


def test_a_part_of_the_ten_domains_is_compared_over_that_part(tmp_path):
    write(tmp_path, "finetune", {"dtd": 55.53, "svhn": 96.55}, spec="decathlon:")
    table = asked(tmp_path).table
    assert table.loc["finetune", "score"] == pytest.approx(500)
    assert table.loc["published: fine-tuning", "score"] == pytest.approx(500)
    assert math.isnan(table.loc["published: fine-tuning", "params"])  # that is of ten domains


def test_drawn_domains_are_compared_with_nothing_published(tmp_path):
    write(tmp_path, "finetune", {"dtd-sample": 50}, spec="decathlon:")
    assert list(asked(tmp_path).table.index) == ["finetune"]


def test_another_setting_can_be_the_baseline(tmp_path):
    write(tmp_path, "finetune", {"a": 98})
    write(tmp_path, "lora", {"a": 90})
    found = asked(tmp_path, baseline="lora")
    assert found.table.loc["lora", "score"] == pytest.approx(250)
    assert found.table.loc["finetune", "score"] == pytest.approx(1000 * 0.9**2)


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ("probe", "baseline 'probe' is no setting of these runs; give --baseline one of"),
        ("lora", "baseline 'lora' is 2 settings (lora lr=0.1, lora lr=0.5)"),
        ("published", "--baseline published is of the ten domains"),
    ],
)
def test_a_baseline_that_is_not_there_is_refused(tmp_path, baseline, said):
    for rate in (0.1, 0.5):
        write(tmp_path, "lora", {"a": 80}, lr=rate)
    with pytest.raises(BadInput) as refused:
        asked(tmp_path, baseline=baseline)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_runs_of_two_backbones_are_refused(tmp_path):
    write(tmp_path, "finetune", {"a": 80})
    write(tmp_path, "finetune", {"b": 80}, backbone="resnet34")
    with pytest.raises(BadInput, match="adapt 2 backbones"):
        asked(tmp_path)


def test_validation_counts_where_a_domain_has_no_test_labels(tmp_path):
    write(tmp_path, "finetune", {"a": 90})
    write(tmp_path, "finetune", {"b": 90}, test=None)
    found = asked(tmp_path)
    assert (found.table.loc["finetune", "a"], found.table.loc["finetune", "b"]) == (90, 50)
    assert "Of b validation images" in found.text


def test_cells_show_the_distance_to_fine_tuning(tmp_path):
    write(tmp_path, "finetune", {"a": 90, "b": 80})
    write(tmp_path, "lora", {"a": 95, "b": 78.5})
    points, cells = asked(tmp_path).figure.axes
    # Rows as in the table: lora has the better score.
    assert [t.get_text() for t in cells.texts] == ["+5.0", "-1.5", "+0.0", "+0.0"]
    assert [t.get_text() for t in cells.get_yticklabels()] == ["lora", "finetune"]
    assert sorted(t.get_text() for t in points.texts) == ["finetune", "lora"]
