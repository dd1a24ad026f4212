"""The ``tailor`` command: one verb, its options, its result.

Options are the fields of dataclasses, typed and explained where they are defined; tyro makes the
command line of them. Results go to standard output (with ``--json`` one JSON document and nothing
else), progress and errors to standard error. Exit codes: 0 done, 1 a defect of ours, 2 something
that the user can mend, 130 interrupted; repeating the command resumes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tailor import show
from tailor.ask import QUESTIONS
from tailor.errors import BadInput

VERBS = {
    "teach": "train a teacher: fine-tuned, from scratch, or a probe",
    "adapt": "adapt the frozen backbone, learning where it must change",
    "together": "adapt one trunk to several tasks at once, a step of each in turn",
    "lifelong": "learn tasks one after the other, and measure what is forgotten",
    "distill": "train a side network to say what the backbone says",
    "prune": "remove what a student switched off",
    "compress": "put the residual adapters of several tasks on one shared basis",
    "retrain": "continue a pruned or compressed student",
    "sweep": "every combination of tasks, methods, λ and seeds, with as many workers as you like",
    "import": "turn a published NetTailor checkpoint into a run",
    "evaluate": "measure a finished run again",
    "merge": "fold a finished run into one plain network",
    "weights": "which network published weights belong to, and what they compute",
    "submit": "predict the test images of decathlon runs, in the challenge's file",
    "score": "points of the Visual Decathlon, from predictions or accuracies",
    "report": "tables and pictures from runs: .html, .md or .json",
    "draw": "the network that a run tailored: .png, .svg, .pdf, or .gif over training",
    **QUESTIONS,
    "bench": "step time and memory against plain fine-tuning",
    "list": "methods, tasks, backbones and sequences",
}
USAGE = """\
tailor: adapt one frozen, pre-trained network to many tasks by learning where it must change.

usage: tailor VERB [options]        tailor VERB --help explains each with examples

{verbs}

The main path:
  tailor teach  --task digits --backbone small_resnet --mode scratch --px 32 --out runs/teacher
  tailor adapt  --task svhn --method taps --backbone resnet34 --lam 0.1 --out runs/svhn/taps
  tailor prune  runs/svhn/taps --out runs/svhn/taps-pruned
  tailor retrain runs/svhn/taps-pruned --epochs 5
  tailor report runs/svhn/* --out report.html
  tailor sweep  --task svhn --method taps finetune --lam 0.03 0.1 0.3 1 --out runs/sweep

Every verb takes --json. Repeating a command resumes its run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    return answered(lambda: _dispatch(args))


def answered(action: Callable[[], int]) -> int:
    """The exit code of ``action``; what the user can mend is told in one line. Demos use it too."""
    try:
        return action()
    except BadInput as error:
        print(f"tailor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tailor: interrupted; repeat the command to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left: `tailor list backbones | head`
        sys.stderr.close()
        return 0


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(USAGE.format(verbs="\n".join(f"  {v:{width}}  {what}" for v, what in VERBS.items())))
        return 0
    if args[0] in ("--version", "-V"):
        from tailor.run import made_by

        print(" ".join(f"{k} {v}" for k, v in made_by().items()))
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        from tailor.catalog import unknown

        raise unknown("verb", verb, VERBS, shown_by="tailor --help")
    machine = "--json" in rest
    rest = [a for a in rest if a != "--json"]
    command = shlex.join(["tailor", verb, *rest])
    result, tell = _COMMANDS[verb](rest, command, machine)
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun, process 0 speaks for all
        return 0
    if machine:
        print(json.dumps(result))
    else:
        tell(result)
    if isinstance(result, list) and (failed := [r for r in result if "failed" in r]):
        raise BadInput(
            f"{len(failed)} of {len(result)} tasks failed, the first, {failed[0]['task']}, with: "
            f"{failed[0]['failed']}"
        )
    if isinstance(result, dict) and result.get("failed"):
        why = next(t["error"] for t in result["trials"] if t["status"] == "failed")
        from tailor.worker import REMEDY

        raise BadInput(
            f"{result['failed']} of {result['total']} trials failed, the first with: {why} "
            f"({REMEDY})"
        )
    return 0


Shown = tuple[Any, Callable[[Any], None]]  # what --json prints, and who prints it to people


def _parse(kind: Any, verb: str, args: list[str], begun: Any = None) -> Any:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                **({} if begun is None else {"default": begun}),
                prog=f"tailor {verb}",
                args=args,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInput(_unboxed(said.getvalue())) from None


_NAMED, _TOLD = 4, 8  # indents in tyro's box of names, and of what they are for


def _unboxed(box: str) -> str:
    """What tyro says of wrong options in a titled box, in one line.

    A section of the box is a sentence and names below it, indented; what each name is for is left
    out, as it is in the help that the last section leads to.
    """
    sections: list[str] = [""]
    for line in box.splitlines()[1:]:
        text = line.lstrip("│").rstrip("│ ")  # a frame, where the terminal has its letters
        indent, words = len(text) - len(text.lstrip()), text.strip()
        if not words.strip("─-+╰╯"):
            sections.append("")
        elif indent < _NAMED:
            sections[-1] += f" {words}"
        elif indent < _TOLD:
            sections[-1] += f" {words}" if sections[-1].endswith(":") else f", {words}"
    return "; ".join(section.strip().rstrip(".") for section in sections if section)


def _teller(machine: bool) -> Callable[[str], Any]:
    from tailor.distributed import Group
    from tailor.progress import for_terminal

    return lambda title: for_terminal(title, quiet=machine or Group.current().rank > 0)


def _teach(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import workflow
    from tailor.distributed import joined
    from tailor.options import Teach

    options = _parse(Teach, "teach", args)
    with joined():
        return workflow.teach(options, tell=_teller(machine), command=command), show.result


def _adapt(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import workflow
    from tailor.distributed import joined
    from tailor.options import Adapt

    options = _parse(_of_method(Adapt, args), "adapt", args)
    with joined():
        return workflow.adapt(options, tell=_teller(machine), command=command), show.result


def _together(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import together
    from tailor.distributed import Group, joined
    from tailor.options import Together
    from tailor.progress import together_for_terminal

    options = _parse(_of_method(Together, args), "together", args)
    with joined(), together_for_terminal(quiet=machine or Group.current().rank > 0) as tell:
        return together.adapt(options, tell=tell, command=command), show.together


def _of_method(options: Any, args: list[str], usual: str = "taps") -> Any:
    """``options`` with the method's own, so it must be known before the others are parsed."""
    from tailor import catalog

    return options[catalog.load("students", _peek(args, "--method", usual), "method").Config]


def _peek(args: list[str], flag: str, default: str) -> str:
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return default


def _lifelong(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import lifelong, lifelong_show
    from tailor.options import Lifelong
    from tailor.sequence import defaults

    name = _peek(args, "--sequence", "")
    begun = defaults(name or None, _peek(args, "--method", "side_tuning"))
    options = _parse(_of_method(Lifelong, args, "side_tuning"), "lifelong", args, begun)
    result = lifelong.run(options, tell=_teller(machine), command=command)
    return result, lifelong_show.matrix


def _distill(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import distill
    from tailor.distributed import joined
    from tailor.options import Distill

    options = _parse(Distill, "distill", args)
    with joined():
        return distill.distill(options, tell=_teller(machine), command=command), show.result


def _prune(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import shrink
    from tailor.options import Prune

    options = _parse(Prune, "prune", _positional(args))
    return shrink.prune(options, tell=_teller(machine), command=command), show.pruned


def _compress(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import compress
    from tailor.options import Compress

    options = _parse(Compress, "compress", _positional(args, "--runs"))
    return compress.compress(options, tell=_teller(machine), command=command), show.together


def _retrain(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import shrink
    from tailor.distributed import joined
    from tailor.options import Retrain

    options = _parse(Retrain, "retrain", _positional(args))
    with joined():
        return shrink.retrain(options, tell=_teller(machine), command=command), show.result


def _sweep(args: list[str], command: str, machine: bool) -> Shown:
    from tailor.options import Sweep

    options = _parse(Sweep, "sweep", args)
    from tailor.sweep import sweep  # Optuna takes a second to import
    from tailor.sweep_progress import for_terminal

    return sweep(options, tell=for_terminal(quiet=machine), command=command), show.sweep


def _import(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import workflow
    from tailor.options import Import

    options = _parse(Import, "import", _positional(args, "--checkpoint"))
    result = workflow.import_checkpoint(options, tell=_teller(machine), command=command)
    return result, show.result


def _positional(args: list[str], name: str = "--run") -> list[str]:
    """`prune RUN ...` as `prune --run RUN ...`: tyro's positionals would have to be last fields."""
    return [name, *args] if args and not args[0].startswith("-") else args


def _evaluate(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import workflow
    from tailor.options import Evaluate

    o = _parse(Evaluate, "evaluate", _positional(args))
    if o.task is not None:
        from tailor import learner

        found = learner.evaluate(o.run, o.task, split=o.split, device=o.device, root=o.root)
        return found, show.measured
    result = workflow.evaluate(
        o.run, split=o.split, device=o.device, root=o.root, latency=o.latency
    )
    return result, show.measured


def _merge(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import workflow
    from tailor.options import Merge

    o = _parse(Merge, "merge", _positional(args))
    return workflow.merge(o.run, o.out), show.merged


def _weights(args: list[str], command: str, machine: bool) -> Shown:
    import tyro

    from tailor import weights_check
    from tailor.options import Weights

    kind = tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Weights)
    return weights_check.weights(_parse(kind, "weights", args)), show.weights


def _submit(args: list[str], command: str, machine: bool) -> Shown:
    import tyro

    from tailor import submission
    from tailor.options import Submit

    kind = tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Submit)
    options = _parse(kind, "submit", args)
    return submission.submit(options, tell=_teller(machine)), show.submitted


def _score(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import submission
    from tailor.options import Score

    benchmarks = ("decathlon",)
    if args and not args[0].startswith("-"):
        if args[0] not in benchmarks:
            from tailor.catalog import unknown

            raise unknown("benchmark", args[0], benchmarks, shown_by="tailor score --help")
        args = _positional(args[1:], "--predictions")
    options = _parse(Score, "score decathlon", args)
    return submission.score(options), show.scored


def _report(args: list[str], command: str, machine: bool) -> Shown:
    import tyro

    from tailor import catalog
    from tailor.options import Report

    kind = tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Report)
    o = _parse(kind, "report", args)
    if not o.runs:
        raise BadInput("no run given; name run directories, as in `tailor report runs/svhn/*`")
    rows = catalog.load("analysis", "rows", "analysis")
    found = rows.read_runs(o.runs)
    if o.out is not None:
        catalog.load("analysis", "report", "analysis").write_report(o.runs, o.out, static=o.static)
    result = {"rows": rows.rows(found)}
    return result, lambda r: show.table(r["rows"], o.out)


def _draw(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import catalog
    from tailor.options import Draw

    o = _parse(Draw, "draw", _positional(args))
    architecture = catalog.load("analysis", "architecture", "analysis")
    return architecture.draw(o.run, o.out), lambda r: print(
        f"{r['out']}: {r['blocks_kept']} of {r['blocks']} blocks, {r['bytes']:,} bytes"
    )


def _ask(verb: str, args: list[str], command: str, machine: bool) -> Shown:
    import tyro

    from tailor import ask

    kind = tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(ask.OPTIONS[verb])
    options = _parse(kind, verb, args)
    answer = ask.ask(options, tell=_teller(machine))
    return ask.for_machines(answer), lambda _: ask.show(answer, options.out)


def _bench(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import bench

    config = _parse(bench.Config, "bench", args)
    if machine:
        return bench.run(config), bench.show
    with bench.bar() as tell:
        return bench.run(config, tell), bench.show


def _list(args: list[str], command: str, machine: bool) -> Shown:
    from tailor import listing

    kinds = tuple(listing.KINDS)
    if not args or args[0] in ("-h", "--help"):
        print(
            f"usage: tailor list {' | '.join(kinds)} [PATTERN]   e.g. tailor list backbones 'vit*'"
        )
        raise SystemExit(0)
    rows = listing.entries(args[0], args[1] if len(args) > 1 else "*")
    return rows, listing.show


_COMMANDS: dict[str, Callable[[list[str], str, bool], Shown]] = {
    "teach": _teach,
    "adapt": _adapt,
    "together": _together,
    "lifelong": _lifelong,
    "distill": _distill,
    "prune": _prune,
    "compress": _compress,
    "retrain": _retrain,
    "sweep": _sweep,
    "import": _import,
    "evaluate": _evaluate,
    "merge": _merge,
    "weights": _weights,
    "submit": _submit,
    "score": _score,
    "report": _report,
    "draw": _draw,
    **{verb: partial(_ask, verb) for verb in QUESTIONS},
    "bench": _bench,
    "list": _list,
}
