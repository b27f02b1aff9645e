#!/bin/sh
# usage: cells.sh CONFIG JOBS SECONDS
# Run the cells of a matrix without Snakemake, JOBS at a time, for at most SECONDS: for a machine that is lent for minutes
# and has the package's own dependencies, but not its extra `bench`. The first seed of every row comes first. Called again
# it goes on from records and checkpoints; tables, figures and the report of results/<name> are made elsewhere
# (docs/pipeline.md, "GPUs"). An archive of images that came in parts, FILE.part-aa, FILE.part-ab, ..., is joined.
set -eu
if [ $# -ne 3 ]; then
    sed -n 's/^# \(usage: .*\)/error: \1/p' "$0" >&2
    exit 2
fi
python=${PYTHON:-python3}
"$python" -m sparcl plan --config "$1"
results=results/$("$python" -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["name"])' "$1")
exec 9>> "$results/run.lock"
flock --nonblock 9 || { # which every cell inherits
    echo "error: $results: other cells are at work here; try again when they are done" >&2
    exit 2
}
for first in "${SPARCL_DATA:-data}"/*.part-aa; do
    whole=${first%.part-aa}
    if [ -e "$first" ] && [ "$(cat "$whole".part-?? | wc -c)" != "$(cat "$whole" 2> /dev/null | wc -c)" ]; then
        cat "$whole".part-?? > "$whole.$$"
        mv "$whole.$$" "$whole"
    fi
done
"$python" - "$results" <<'PYTHON' | timeout --kill-after 30 "$3" xargs -0 -r -P "$2" -I '{}' \
    "$python" -m sparcl run --results "$results" --quiet --cell '{}' &
import collections, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
rows = collections.defaultdict(list)
for entry in json.loads((folder / "plan.json").read_text())["cells"]:
    row = rows[entry["path"].rpartition("/")[0]]
    row.append((len(row), entry))
for _, entry in sorted((pair for row in rows.values() for pair in row), key=lambda pair: pair[0]):
    try:
        found = json.loads((folder / "runs" / entry["path"] / "record.json").read_text())["identity"]
    except (OSError, ValueError, LookupError, TypeError):
        found = None
    if found != entry["identity"]:  # of other code: sparcl run says so
        print(json.dumps(entry["cell"], sort_keys=True), end="\0")
PYTHON
cells=$! # a process group of its own, which Ctrl-C does not reach
trap 'kill "$cells" 2> /dev/null || :' INT TERM HUP
status=0
wait "$cells" || status=$?
wait "$cells" 2> /dev/null || : # after a signal
exec 9>&-
flock --timeout 60 "$results/run.lock" true || : # until the last cell has left its checkpoint
if [ "$status" -eq 124 ]; then
    echo "time is up after $3 seconds: the same command goes on"
fi
exit "$status"
