"""Every oddity of the official code that is known: what it does, what we do, and the switch that goes between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rvlr_lib.config import load_settings


@dataclass(frozen=True)
class Row:
    """One row of the defect table.

    Attributes:
        number: of the row, 1 to 33.
        official: what the official code does.
        ours: what we do, under ``corrected`` where there is a switch.
        switches: fields of :class:`rvlr_lib.config.MethodSettings` that go between both; none where none is needed.
        why: why it needs no switch; empty where it has one.
    """

    number: int
    official: str
    ours: str
    switches: tuple[str, ...] = ()
    why: str = ""


ROWS = (
    Row(1, "adds D(I,E) and D(T,E); with `mae` and equal weights they do not move a fusion weight inside (0, 1)",
        "leaves both terms out", ("teacher_terms",)),
    Row(2, "learns the relation temperature, which only ever gets upward gradient", "keeps it fixed",
        ("learn_relation_temperature",)),
    Row(3, "a free fusion weight, weight-decayed", "a sigmoid, never decayed, path logged", ("fusion_weight_form",)),
    Row(4, "`kl` is an L1 distance of running sums and depends on the order of the batch",
        "`row_kl`, a KL divergence of row softmaxes; the official one is `cumulative_l1`", ("distance",)),
    Row(5, "`wd` trains teacher maps with no anchor and keeps the gradient of its cost",
        "`wasserstein` compares frozen relations at a detached cost", ("distance", "cost_gradient")),
    Row(6, "imposes structure on the fusion encoder's first token, while single-modal retrieval uses the towers",
        "imposes it on the common space, on each modality", ("structure_target", "structure_teacher")),
    Row(7, "compares stage 2 with stage 1, which had half the steps",
        "compares with `matching_longer`: same checkpoint, steps and batches", ("baseline",)),
    Row(8, "chooses the best epoch on the test split", "chooses it on validation", ("selection",)),
    Row(9, "trains on Flickr30K's validation split too", "trains on the training split",
        why="a choice of files, made when data are prepared"),
    Row(10, "VizWiz's validation and test files are one file", "splits must differ",
        why="a fault of the files; no result should rest on it"),
    Row(11, "T2IT takes the caption-to-picture scores transposed", "takes them as they are", ("mixed_t2it",)),
    Row(12, "mixed lists hold matching logits, −100 fillers and cosines", "mixed lists hold cosines alone",
        ("mixed_scores",)),
    Row(13, "sums the matching scores of all GPUs, so they grow with their number", "scores every pair once",
        why="one process gives the official value of one GPU; more would only be wrong"),
    Row(14, "mixed lists keep the query itself", "removes it",
        why="`protocol=\"official\"` of `evaluate_retrieval` keeps it; it is part of that protocol"),
    Row(15, "in single-modal lists the query gets score 0 and relevance 0 and so outranks negative cosines",
        "removes it", why="part of `protocol=\"official\"`, as row 14"),
    Row(16, "T2T keeps the four sibling captions, whose relevance is 1", "the headline T2T leaves siblings out; both "
        "are printed, with chance-corrected values", ("siblings",)),
    Row(17, "I2I relevance comes from one of five captions and is not symmetric", "mean over captions, symmetrised",
        why="part of `protocol=\"official\"`, as row 14"),
    Row(18, "NDCG during training uses the towers' features, `--evaluate` those of the heads",
        "always the common-space features", why="training logs no NDCG here, so there is one value only"),
    Row(19, "\"COCO 1K\" is the first 1,000 pictures",
        "the mean over five disjoint folds of 1,000 (`rouge_l_1k`), beside the whole",
        why="a choice of gallery, named beside the number"),
    Row(20, "up to 60 words in training, 30 in evaluation", "the model's context in both",
        why="touches under 1 % of the captions"),
    Row(21, "gathers whole fused sequences, whose lengths differ between GPUs", "uses the first token alone",
        why="a crash or undefined, never a result"),
    Row(22, "gathered losses carry 1/W of their gradient on W GPUs", "the gather keeps the whole gradient",
        why="shown by tests with two and three processes; on one device it equals weights divided by W"),
    Row(23, "the learning-rate multiplier of new layers is dead code", "parameter groups that work",
        why="dead code changes no number"),
    Row(24, "representation losses go one way and share the contrastive temperature",
        "both directions, a temperature of their own",
        ("representation_bidirectional", "representation_temperature")),
    Row(25, "a random seed replaces the one asked for and is stored nowhere", "seeded and stored with every result",
        why="a run that nobody can repeat is no option"),
    Row(26, "`--load_pretrain False` is true; some temperatures raise a TypeError",
        "typed settings, unknown ones refused", why="an interface fault"),
    Row(27, "asked-for weights are skipped without a word for some towers", "they load, or it is an error",
        why="never a silent random start"),
    Row(28, "YAML and scripts contradict each other (`wd` against `mae`)",
        "one resolved setting, stored with the result",
        why="the scripts win in what was run: `mae`, learned fusion weight"),
    Row(29, "teacher rows are matched by position and never checked",
        "features are cached by stage and split; their rows are those of the data set",
        why="a mismatch would be a fault, not a variant"),
    Row(30, "`wd` in stage 1 leaves unused parameters", "each variant builds only the terms that weigh",
        why="changes no number on one device"),
    Row(31, "needs a process group and caption-scoring packages to start", "runs in one process, in a notebook",
        why="an interface fault"),
    Row(32, "scans the whole relevance matrix once per query and cut-off", "vectorised; the same numbers",
        why="speed alone"),
    Row(33, "CLIP pixel statistics with an ImageNet tower; flips though captions say left and right; the schedule "
        "counts the dropped batch; hard negatives per GPU",
        "statistics of the tower; flips are a setting; exact schedule",
        why="`stage1.flip` and the model's preprocessing are settings already"),
)  # fmt: skip


def table(measured: Mapping[int, str] | None = None) -> str:
    """The table as Markdown: every row with its switch and the values of both presets, or why it has none.

    Args:
        measured: row -> what an ablation measured, a column of its own where given.

    >>> len(table().splitlines())
    35
    """
    official, corrected = load_settings("official").method, load_settings("corrected").method
    heads = ["row", "official code", "here", "switch: official → corrected", *(["measured"] if measured else [])]
    lines = [f"| {' | '.join(heads)} |", "|---:" + "|---" * (len(heads) - 1) + "|"]
    for row in ROWS:
        values = (f"`{name}`: {getattr(official, name)} → {getattr(corrected, name)}" for name in row.switches)
        cells = [str(row.number), row.official, row.ours, "; ".join(values) or f"none: {row.why}"]
        lines.append(f"| {' | '.join([*cells, *([measured.get(row.number, '–')] if measured else [])])} |")
    return "\n".join(lines)


def measured(
    results: Mapping[str, Any], metrics: Sequence[str] = ("r_mean", "t2t_no_siblings/NDCG@10")
) -> dict[int, str]:
    """What the ablation notebook found, per row of the table.

    Args:
        results: content of ``results/<dataset>_05_ablation.json``.
        metrics: to name of the switches of training.

    Returns:
        Row -> differences ``official`` − ``corrected`` in points, with interval, seeds and reading where there are any.
    """
    from rvlr_lib.study.ablation import switches

    found: dict[int, list[str]] = {}
    rows = {name: switch.row for name, switch in switches().items()}
    for record in results["tables"].get("training_switches", []):
        row = rows.get(record["switch"], 0)
        if row and record["metric"] in metrics:
            interval = "" if record["low"] is None else f" [{record['low']:+.1f}, {record['high']:+.1f}]"
            found.setdefault(row, []).append(
                f"{record['switch']}: {record['metric']} {record['difference']:+.1f}{interval}, "
                f"{record['seeds']} seed(s), {record['reading']}"
            )
    for name, value in results["metrics"].items():
        if name.startswith("row ") and value is not None:
            where, metric = name.split(" | ")
            variant = where.split()[-1]
            if abs(value) > 0.05 or metric.startswith("t2"):
                found.setdefault(int(name[4:6]), []).append(f"{metric} of {variant} {value:+.1f}")
    return {row: "; ".join(texts) for row, texts in found.items()}
