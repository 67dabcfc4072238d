"""make estimate: how long what is not done will take, wall time included."""

from lib.analysis import table
from lib.config.budget import SHORT_WINDOWS
from lib.config.fields import Value, fill
from lib.matrix.estimate import Rate, estimate, from_done
from lib.train.progress import duration
from scripts.workspace import ROOT, Workspace, exit_with

START_SECONDS = 6.0  # imports, data, first allocation


def main() -> None:
    from gpt2 import size

    space = Workspace()
    todo = [cell for cell in space.cells if cell.state != "done"]
    if not todo:
        print("Everything is done; make summary shows it.")
        return
    values = space.specs[0].values
    rate = from_done(space.cells) or measured(values)
    windows = int(values["GPT2_EVAL_WINDOWS"]) or whole_split(space, values)
    tokens = (windows + min(windows, SHORT_WINDOWS)) * int(values["GPT2_BLOCK_SIZE"])
    found = []
    for cell in todo:
        own = cell.spec.values  # without a closed form, V0's is near enough for a clock
        own = own if size.has_closed_form(own) else size.unpatched(own)
        flops = size.cost(own, vocabulary(values)).flops_per_token
        found.append(estimate(cell, rate, flops, tokens))
    rows = [
        [e.name, duration(e.optimisation), duration(e.evaluation), duration(e.start), duration(e.wall)] for e in found
    ]
    print(table.text(["run", "optimisation", "evaluation", "start", "wall time"], rows))
    at_once = min(space.matrix.parallel_runs, len(todo))
    print(
        f"\n{len(todo)} runs, {at_once} at a time: about {duration(sum(e.wall for e in found) / at_once)} of wall time"
    )
    print(f"At {rate.tokens_per_second:,.0f} tokens/s ({rate.source}).")
    wanted = int(values["GPT2_NGPUS"])
    if wanted > 1 and "CPU" in rate.source:
        print(f"No GPU is visible here; on the {wanted} that the settings name it will be another number.")
    if not windows:
        print("Without evaluation: the size of the validation split is known once the data is prepared.")


def measured(values: dict[str, Value]) -> Rate:
    """A rate measured now, on one device; several GPUs multiply it."""
    from lib.config.errors import need

    need("torch", ROOT)
    from gpt2.rate import measure
    from lib.train.launch import processes

    rate, where = measure(values, vocabulary(values))
    count, _ = processes(str(values["GPT2_DEVICE"]), int(values["GPT2_NGPUS"]))
    count = 1 if where == "this CPU" else count
    times = f", times {count}" if count > 1 else ""
    return Rate(rate * count, START_SECONDS, f"measured now on {where}, eager{times}")


def vocabulary(values: dict[str, Value]) -> int:
    """Size of the tokenizer's vocabulary, before any data is there."""
    from lib.data.config import DataConfig, vocab_size_of

    return vocab_size_of(fill(DataConfig, values))


def whole_split(space: Workspace, values: dict[str, Value]) -> int:
    """Windows of the whole validation split: from prepared shards, else from the sizes in the settings; 0 unknown."""
    from lib.data.config import DataConfig
    from lib.data.prepare import prepared

    found = prepared(fill(DataConfig, values), space.base)
    block = int(values["GPT2_BLOCK_SIZE"])
    if found is not None:
        return max(1, (len(found.val) - 1) // block)
    text = int(values["GPT2_DATA_MAX_MB"]) * 1e6 * float(values["GPT2_VAL_FRACTION"])
    return int(text / (1.0 if values["GPT2_TOKENIZER"] == "bytes" else 4.4) / block)


if __name__ == "__main__":
    exit_with(main)
