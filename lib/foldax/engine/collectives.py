"""Communication between devices in a compiled program, read from its text."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Bits of an element, by the type's name in XLA.
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (8, 16, 32, 64) if (kind, bits) != ("f", 8)
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\([^\n]*\) -> [^\n]*)?\{$", re.M)
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")


class Collective(NamedTuple):
    """All collectives of one kind in a step.

    Attributes:
      number: how many run.
      bytes: of their results on one device.
      sent: bytes that one device sends or receives at least.
    """

    number: int = 0
    bytes: float = 0.0
    sent: float = 0.0


def find_collectives(text: str) -> dict[str, Collective]:
    """Finds the collectives of a compiled program, by kind.

    The body of a loop counts as often as it runs, where the compiler knows that; else once, as that over the steps.

    Args:
      text: of an optimised HLO module.

    >>> line = "%y = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add"
    >>> find_collectives("ENTRY %main (x: f32[8]) -> f32[8] {\\n  " + line + "\\n}")
    {'all-reduce': Collective(number=1, bytes=32.0, sent=32.0)}
    """
    starts = list(_COMPUTATION.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    bodies = {match[1]: text[match.end() : end] for match, end in zip(starts, ends)}
    entry = next((match[1] for match in starts if match[0].startswith("ENTRY")), None)
    found: dict[str, Collective] = defaultdict(Collective)
    if entry is not None:
        _add(entry, 1, bodies, found, set())
    return dict(sorted(found.items()))


def _add(name: str, times: int, bodies: dict[str, str], found: dict[str, Collective], overlapped: set[str]) -> None:
    for line in bodies.get(name, "").splitlines():
        if match := _OPERATION.search(line):
            kind, devices = match[2], _group_size(line)
            size = _result_bytes(match[1], is_start=bool(match[3]) and kind != "all-reduce")
            if name.startswith("all-reduce-scatter"):  # the TPU's compiler adds up and slices in one
                kind, size = "reduce-scatter", size / devices
            elif (channel := re.search(r"channel_id=\d+", line)) and "fus" in name:
                # What overlaps with computation is in several fusions: where it starts, goes on and ends.
                key = f"{kind} {match[1]} {channel[0]}"
                if key in overlapped:
                    continue
                overlapped.add(key)
            before, sent = found[kind], _bytes_sent(kind, size, devices)
            found[kind] = Collective(before.number + times, before.bytes + times * size, before.sent + times * sent)
            continue  # what a reduction applies is no communication
        trips = _num_trips(line, bodies)
        for several, one in _CALLED.findall(line):
            for inner in (several or one).replace("%", "").split(", "):
                _add(inner, times * trips, bodies, found, overlapped)


def _num_trips(line: str, bodies: dict[str, str]) -> int:
    """How often the body of a loop runs; 1 where the text does not say, and for what is no loop."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    # The TPU's compiler does not write it: there, the condition compares a counter, which starts at 0, to a constant.
    condition = re.search(r" while\(.*condition=%?([\w.\-]+)", line)
    text = bodies.get(condition[1], "") if condition else ""
    compared = re.search(r"ROOT .* compare\(([^,]*), ([^)]*)\), direction=LT", text)
    limit = compared and re.search(rf"{re.escape(compared[2])} = \w+\[\][^ ]* constant\((\d+)\)", text)
    return int(limit[1]) if limit else 1


def _result_bytes(shapes: str, is_start: bool) -> float:
    """Bytes of the arrays of a result; one that is started may have its operands before its results."""
    arrays = [(kind, sizes) for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes) if sizes or not is_start]
    sizes = [
        math.prod(int(n) for n in dimensions.split(",") if n) * BITS.get(kind, 8) / 8 for kind, dimensions in arrays
    ]
    return sum(sizes[len(sizes) // 2 :] if is_start else sizes)


def _group_size(line: str) -> int:
    """Number of devices that take part in one collective together; 2 where the text does not say."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    return 2


def _bytes_sent(kind: str, size: float, devices: int) -> float:
    """Bytes that each device has to send or receive where no switch adds them up (Chan et al., 2007)."""
    if devices == 1:
        return 0.0
    share = (devices - 1) / devices
    return {
        "all-reduce": 2 * share * size,
        "all-gather": share * size,  # what it receives
        "reduce-scatter": (devices - 1) * size,
        "all-to-all": share * size,
        "collective-permute": size,
    }[kind]
