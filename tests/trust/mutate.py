"""Damaged and hostile copies of a good file, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

FRAGMENTS = [
    "!!python/object/apply:os.system ['touch hacked']", "!!python/name:os.system", "!!python/module:antigravity",
    "!!python/object/new:subprocess.Popen [['touch', 'hacked']]", "!!map", "!!set {a}", "!!binary aGVsbG8=", "!x y",
    "&a [*a, *a]", "*a", "&a", "{? [] : x}", "? x", "~", "1e999", "-1", ".nan", "-.inf", "0x10", "0b1", "1_000",
    "'", '"', "\t", "\x00", "\x85", "\u2028", "\ud7ff", "\ufeff", "\u202e", "e\u0301", "../..", "/etc/passwd",
    "$(touch hacked)",
    "`touch hacked`", "; touch hacked", "%s%n", "{0.__class__}", "[[[[[[[[", "{a: " * 9, "- " * 50, "null", "true",
    "yes",
    "9" * 40, "9" * 5000, "-" * 99, "{}", "[]", "seeds: 1e9", "methods: '*'", "<<: *x", "%YAML 1.1", "---\n---",
    "a: a: a",
    "|\n", ">\n  x", "2001-99-99", "12:30:45", "!!timestamp x", "!!int '1e5'", "!!float x", "!!python/tuple [1]", "NaN",
    '"\\ud800"', '"\\u0000"', "[" * 2000, '{"a":' * 500, "Infinity", "-0.0", "1e-400", "\\", ",,", ":", "#",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e308, 10**30, -(10**400), "", "x", "../../x", "/etc/passwd", "a\nb",
    "\u0000",
    "\ud800", "\u202e", "$(touch hacked)", "; touch hacked", "null", "1", "0.75", "nan", "x" * 300, [], {}, [[]],
    [None], [{}],
    ["x"], [1, 2], {"a": {}}, {"": None}, {"__class__": "x"}, {"params": {}}, [[[[[[]]]]]],
]  # fmt: skip


def text(good: str, draw: random.Random) -> str:
    """Cut, double, replace pieces of a text by fragments or single characters, a few times."""
    mutated = good
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(mutated) + 1)
        end = min(len(mutated), start + draw.choice((0, 0, 1, 3, 12, 80)))
        kind = draw.randrange(6)
        piece = (
            "", draw.choice(FRAGMENTS), chr(draw.choice((draw.randrange(1, 0x2FF), draw.randrange(1, 0xD7FF)))),
            mutated[start:end] * 2, mutated[draw.randrange(len(mutated) + 1) :][: end - start],
            draw.choice("{}[]:,-&*!|>'\"%@`#"),
        )[kind]  # fmt: skip
        mutated = mutated[:start] + piece + mutated[end:]
    return mutated[: draw.randrange(len(mutated) + 1)] if draw.random() < 0.1 else mutated


def data(good: bytes, draw: random.Random) -> bytes:
    """Flip bits, overwrite, cut and insert bytes."""
    mutated = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(mutated) or 1)
        kind = draw.randrange(4)
        if kind == 0 and mutated:
            mutated[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and mutated:
            mutated[place] = draw.randrange(256)
        elif kind == 2:
            mutated[place:place] = draw.randbytes(draw.randint(1, 9))
        else:
            del mutated[place : place + draw.choice((1, 8, 100))]
    return bytes(mutated[: draw.randrange(len(mutated) + 1)] if draw.random() < 0.2 else mutated)


def value(good: Any, draw: random.Random) -> Any:
    """Replace, remove, double, rename, move or wrap parts of nested JSON values, a few times."""
    root = {"root": copy.deepcopy(good)}
    for _ in range(draw.randint(1, 3)):
        place: Any = root
        key: Any = "root"
        while isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.85:
            place = place[key]
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        kind = draw.randrange(7)
        if kind == 0 and place is not root:
            del place[key]
            if not place:
                continue
        elif kind == 1 and isinstance(place, dict) and place is not root:
            place[draw.choice([key + "s", key.upper(), "", "\u0000", "__class__", "../x", "x" * 300])] = place.pop(key)
        elif kind == 2 and isinstance(place, list):
            place.extend(place[key : key + 1] * draw.choice((1, 3, 40)))
        elif kind == 3:
            for _ in range(draw.choice((1, 3, 40))):
                place[key] = [place[key]] if draw.random() < 0.5 else {"x": place[key]}
        elif kind == 4 and isinstance(place[key], (int, float)) and not isinstance(place[key], bool):
            place[key] = draw.choice(
                [-place[key], place[key] + 1, place[key] * 10**9, [place[key]], str(place[key])[:99]]
            )
        elif kind == 5 and isinstance(place, dict) and len(place) > 1:
            place[key] = copy.deepcopy(place[draw.choice(list(place))])
        else:
            place[key] = copy.deepcopy(draw.choice(VALUES))
    return root["root"]


def written(changed: Any) -> str:
    """Return JSON (and so YAML) of ``changed``, numbers too long for Python's own limit included."""
    try:
        return json.dumps(changed)
    except ValueError:
        return json.dumps(str(type(changed)))
