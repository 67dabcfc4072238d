"""From a workspace to its summary: printed, and written beside the runs."""

from lib.analysis import summary
from scripts.workspace import Workspace


def summarise(space: Workspace) -> bool:
    """Print the summary; where anything is done, also write summary.md and summary.json beside the runs."""
    runs = [summary.Run(c.spec.step, c.spec.optimizer, c.spec.seed, c.state, c.summary) for c in space.cells]
    if space.reference:
        r = space.reference
        runs.insert(0, summary.Run(str(r["step"]), str(r["optimizer"]), int(r["seed"]), "done", r))
    spec = space.specs[0]
    found = summary.summarise(
        f"{space.shown(space.output)}: {spec.budget} per run, {spec.values['GPT2_DATASET']}, "
        f"{spec.values['GPT2_N_LAYER']} layers of {spec.values['GPT2_N_EMBD']}",
        runs,
        space.matrix.contrast_list,
    )
    print(summary.as_text(found))
    if any(run.metrics for run in runs):  # an empty table never takes the place of one with results
        summary.write(found, space.output)
        return True
    return False
