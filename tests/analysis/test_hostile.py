"""Records whose values are not what they should be, under a checksum that is right: one line, or a table."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import factory
import pytest

from sparcl.errors import UserError
from sparcl.running import record

sys.path.append(str(Path(__file__).parents[1] / "trust"))
import mutate

COUNT = 400


@pytest.fixture(scope="module")
def small():
    """A record that says everything once."""
    entry = factory.entry(factory.cell("sparcl-derpp", 0.9, 50, 0, epochs=1))
    body = factory.record(entry)
    body["results"]["masks"]["history"] = body["results"]["masks"]["history"][:1]
    body["results"]["data"]["removed"][0] = [{"epoch": 0, "removed": 3, "remaining": 9, "tied": 0.0}]
    return entry, factory.sealed(body)


def sealed(changed):
    try:
        return factory.sealed(changed) if isinstance(changed, dict) else changed
    except (ValueError, RecursionError):
        return changed


def test_any_value_in_a_record_is_read_or_refused_in_one_line(small, tmp_path):
    entry, body = small
    draw, accepted = random.Random(20), 0
    file = factory.write(tmp_path, factory.plan([entry]))
    target = tmp_path / "runs" / entry["path"] / "record.json"
    for number in range(COUNT):
        changed = mutate.value(body, draw)
        if number % 2 and isinstance(changed, dict):  # keep what is compared with the plan, so that the rest is reached
            changed |= {key: body[key] for key in ("schema", "identity", "cell")}
        target.write_text(mutate.written(sealed(changed)), errors="surrogatepass")
        message = ""
        try:
            results = factory.collected(file)
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        if message:
            assert "record.json" in message
        else:
            accepted += 1
            factory.table(results, "continual_learning")
            factory.table(results, "all_cells")
    assert 5 < accepted < COUNT / 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r["results"]["losses"][1].append("x"), r"results.losses[1][10]: expected a number, found 'x'"),
        (lambda r: r["results"].pop("masks"), "results.masks: missing"),
        (lambda r: r.update(more=1), "more: unknown key"),
        (lambda r: r.update(status="failed"), "status: expected 'done' or 'diverged', found 'failed'"),
        (lambda r: r.update(status="diverged"), "diverged: expected a place for a diverged run alone"),
        (lambda r: r["results"]["accuracy"]["class_il"][0].__setitem__(0, True), "class_il[0][0]: expected"),
        (lambda r: r["results"]["executed"].update(training=2**70), "training: expected a whole number"),
    ],
)
def test_the_reader_says_where(tmp_path, change, expected):
    changed = factory.record(factory.entry(factory.cell("sparcl-derpp", 0.9, 50, 0)))
    change(changed)
    target = tmp_path / "record.json"
    target.write_text(json.dumps(factory.sealed(changed)))
    with pytest.raises(UserError) as caught:
        record.read(target)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{target}: ")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "1e999", "NaN", "[" * 100_000, "\x00", ""])
def test_what_is_no_strict_json_is_refused(tmp_path, text):
    target = tmp_path / "record.json"
    target.write_text(text)
    with pytest.raises(UserError, match=r"record\.json: run record is damaged") as caught:
        record.read(target)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back(small, tmp_path):
    _, body = small
    target = tmp_path / "record.json"
    assert record.write(target, body) == body == record.read(target)
    with pytest.raises(ValueError, match="does not fit its schema"):
        record.write(target, body | {"status": "fine"})
    assert record.read(target) == body
