#!/usr/bin/env python3
"""Perplexity against KV cache budget: runs `pythia eval` under every policy, budget and weight type.

Each window is prefilled in part and the rest decoded; only decoded tokens are scored, the same ones
under every policy. Writes all results as JSON and prints the table as Markdown.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile

POLICIES = ["full", "h2o", "streaming", "window", "random"]
TITLES = {
    "full": "full",
    "h2o": "H2O",
    "streaming": "StreamingLLM",
    "window": "window",
    "random": "random",
}
SINKS = 4  # of streaming


def budget_options(policy, budget):
    """The options that make `policy` keep `budget` keys: heavy hitters and recent tokens share."""
    if policy == "streaming":
        return ["--sinks", str(SINKS), "--window", str(budget - SINKS)]
    if policy == "window":
        return ["--window", str(budget)]
    return ["--window", str(budget - budget // 2), "--h2o_hh", str(budget // 2)]


def evaluate(arguments, weights, policy, budget):
    """The result of one `pythia eval`."""
    command = [arguments.pythia, "eval", "--text", arguments.text, "--weights", weights]
    command += ["--policy", policy]
    command += ["--window-len", str(arguments.window_len)]
    command += ["--prefill_len", str(arguments.prefill_len)]
    if policy != "full":
        command += budget_options(policy, budget)
    for option in ("model", "device", "dtype", "max_windows"):
        value = getattr(arguments, option)
        if value is not None:
            command += ["--" + option.replace("_", "-"), str(value)]
    with tempfile.TemporaryDirectory() as directory:
        result = pathlib.Path(directory) / "result.json"
        run = subprocess.run(command + ["--json", str(result)], stdout=subprocess.DEVNULL)
        if run.returncode != 0:
            sys.exit(f"budget_table.py: failed: {' '.join(command)}")
        return json.loads(result.read_text())


def row_of(results, weights, percent):
    """{policy: result} of one line of the table."""
    return {
        result["policy"]: result
        for result in results
        if result["weights"] == weights and result["percent"] in (percent, 100)
    }


def markdown(results, arguments):
    """The table: a line per weight type and budget, a column per policy."""
    lines = ["| weights | keys kept | " + " | ".join(TITLES[p] for p in POLICIES) + " |"]
    lines.append("|---|---|" + "---|" * len(POLICIES))
    for weights in ("fp16", "int8"):
        for percent in arguments.percent:
            row = row_of(results, weights, percent)
            budget = arguments.window_len * percent // 100
            values = [f"{row[policy]['perplexity']:.2f}" for policy in POLICIES]
            lines.append(f"| {weights} | {budget} ({percent} %) | " + " | ".join(values) + " |")
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, help="text file")
    parser.add_argument("--json", required=True, help="where the results go")
    parser.add_argument("--name", help="of the text in the results (default: the file's name)")
    parser.add_argument("--pythia", default="pythia", help="the executable (default: in PATH)")
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["fp16", "bf16"])
    parser.add_argument("--window-len", type=int, default=2048)
    parser.add_argument("--prefill-len", type=int, default=512)
    parser.add_argument("--percent", type=int, nargs="+", default=[25, 50, 75])
    parser.add_argument("--max-windows", type=int, help="only the first windows (default: all)")
    return parser.parse_args()


def main():
    arguments = parse()
    if any(not 0 < percent < 100 for percent in arguments.percent):
        sys.exit("budget_table.py: --percent: expected numbers from 1 to 99")
    results = []
    common = {}
    for weights in ("fp16", "int8"):
        for policy in POLICIES:
            for percent in [100] if policy == "full" else arguments.percent:
                budget = arguments.window_len * percent // 100
                found = evaluate(arguments, weights, policy, budget)
                keys = ["tokens", "tokens_scored", "windows", "window_len", "prefill_len"]
                keys += ["dtype", "device", "commit"]
                settings = {key: found[key] for key in keys}
                if settings != (common or settings):
                    sys.exit(f"budget_table.py: settings differ: {settings} and {common}")
                common = settings
                results.append(
                    {
                        "weights": weights,
                        "policy": policy,
                        "percent": percent,
                        "mean_nll": found["mean_nll"],
                        "perplexity": found["perplexity"],
                        "cache": found["cache"],
                        "seconds": found["seconds"],
                    }
                )
                print(weights, policy, budget, found["perplexity"], file=sys.stderr, flush=True)
    document = {
        "text": arguments.name or pathlib.Path(arguments.text).name,
        "model": pathlib.Path(arguments.model).name if arguments.model else "tiny-neox",
        **common,
        "all_windows": arguments.max_windows is None,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "results": results,
    }
    output = pathlib.Path(arguments.json)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2) + "\n")
    print(markdown(results, arguments))


if __name__ == "__main__":
    main()
