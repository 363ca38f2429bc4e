"""What each step of the hunt says, in a sentence or two with its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from qlab.analysis.diagnose import COSTLY
from qlab.evaluation import Evaluation
from qlab.lessons import hunt
from qlab.metrics import percent, three_digits, write
from qlab.quant.stats import TensorStats

CULPRITS: Mapping[hunt.Culprit, str] = {
    "outlier": "outlier weights",
    "channels": "channels too different",
    "cut": "a range that cuts off",
    "calibration": "the calibration",
    "data": "the data",
    "coarse": "too few levels",
    "nothing": "nobody: chance",
}


def told(key: str, step: int) -> str:
    """What step 1 to 6 says of the case. Computes what the step needs where it is not known yet."""
    return _STEPS[step - 1](key)


def told_in_the_end(key: str) -> str:
    """Why it is the culprit that it is."""
    if hunt.culprit(key) == "nothing":
        found = hunt.accuracy(key).quantization
        return (
            f"{found.changed:,} of {found.n:,} predictions changed, {found.lost} for the worse and {found.gained} for "
            f"the better. Chance alone would split them as unevenly with p = {write('p_value', found.p)}."
        )
    first = hunt.diagnosis(key).first
    assert first is not None
    return first.sentence


def what_it_teaches(key: str) -> str:
    """What the whole way showed, for the end."""
    start = "The steps led from an accuracy to a cause."
    if hunt.culprit(key) == "nothing":
        return f"{start} Here the first step already said all: whoever skips it repairs what is not broken."
    tried = hunt.cures(key).tried
    helped = sum(bool(cure.against.significant) for cure in tried)
    return (
        f"{start} Steps 1 and 2 tell whether quantization is to blame at all, steps 3 and 4 where to look. Remedies "
        f"come last: of the {len(tried)} tried here {helped} changed something beyond chance."
    )


def _broken(key: str) -> str:
    found = hunt.accuracy(key)
    against = found.quantization
    end = (
        "That is beyond chance: quantization broke it."
        if against.significant and against.lost > against.gained
        else "That is not beyond chance: on these samples quantization cost nothing that could be told from luck."
    )
    return (
        f"Float is right on {_share(found.float)} of this data, quantized on {_share(found.quantized)} (simulated, "
        f"{against.n:,} samples). {against.lost:,} predictions were lost, {against.gained:,} gained. {end}"
    )


def _float(key: str) -> str:
    found = hunt.accuracy(key)
    end = (
        "The float network itself fails on this data, before anything is quantized."
        if found.preparation.significant
        else "The float network is what it was: neither the network nor the data is to blame."
    )
    return f"Float is right on {_share(found.float)} here. When it was made it was {_share(found.promised)}. {end}"


def _layer(key: str) -> str:
    rows, spread = hunt.layers(key).ranked(), hunt.errors(key)
    first, second = rows[:2]
    made, shown = spread.made, spread.shown
    guilt = (
        f"`{first.layer}` alone quantized leaves the output {write('sqnr', first.sqnr)}, the next, `{second.layer}`, "
        f"{write('sqnr', second.sqnr)}."
        if hunt.guilty(key)
        else f"No layer does harm: the worst, `{first.layer}`, alone leaves the output {write('sqnr', first.sqnr)}, "
        f"and only below {COSTLY:.0f} dB is it worth a word."
    )
    place = (
        f"Most error is made at `{made.tensor}` ({write('sqnr', made.own.sqnr)}), and there it shows most."
        if made.tensor == shown.tensor
        else f"Most error is made at `{made.tensor}` ({write('sqnr', made.own.sqnr)}); it shows most at "
        f"`{shown.tensor}` ({write('sqnr', shown.arrived.sqnr)})."
    )
    return f"{guilt} {place} Measured on {hunt.SAMPLES} samples, simulated."


def _tensor(key: str) -> str:
    found = hunt.suspect(key)
    tail = f"{percent(found.tail)} of the range is there for the largest thousandth of its values"
    spread = "" if found.spread is None else f", and its widest channel reaches {found.spread:.1f} times the median one"
    if found.row is None:
        assert found.levels is not None
        used, levels = found.levels
        shared = f"{'is' if used == 1 else 'are'} all that {percent(hunt.MOST)} of its weights use"
        return (
            f"The weight `{found.tensor}` costs more than the activations of `{found.layer}`. {tail}{spread}. {used} "
            f"of {levels} codes {shared}."
        )
    held = found.held
    assert isinstance(held, TensorStats)
    clipped = "" if found.row.clipped is None else f" {percent(found.row.clipped)} of its values lie beyond its grid."
    return (
        f"The activation `{found.tensor}` is where most error is made: {write('sqnr', found.row.own.sqnr)}.{clipped} "
        f"In the calibration it held {three_digits(held.minimum)} to {three_digits(held.maximum)}, its grid "
        f"reaches from {_end(found, 0)} to {_end(found, 1)}."
    ).replace("-", "−")


def _findings(key: str) -> str:
    found = hunt.diagnosis(key).faults
    costly = [fault for fault in found if fault.severity != "note"]
    if not found:
        return "The lab finds nothing wrong that it knows of."
    first = f"First of all: {found[0].title.lower()}" + (f" (`{found[0].tensor}`)." if found[0].tensor else ".")
    more = f" {len(costly)} finding{'s' if len(costly) != 1 else ''} cost{'s' if len(costly) == 1 else ''} something."
    end = (
        " But step 1 says that nothing was lost that could be told from chance: this finding needs no remedy."
        if hunt.culprit(key) == "nothing"
        else ""
    )
    return first + more + end


def _remedy(key: str) -> str:
    found = hunt.cures(key)
    if not found.tried:
        return "There is nothing to cure: what was lost is within chance. Leave it as it is."
    best = found.tried[0]
    without = [cure for cure in found.tried if not cure.against.significant]
    most = (
        f"“{best.title}” helps most: from {percent(found.before)} to {percent(best.accuracy)}, float "
        f"{percent(found.float)} ({found.samples} samples, simulated)."
    )
    if not without:
        return most
    count = len(without)
    return f"{most} {count} of {len(found.tried)} remedies bring{'s' if count == 1 else ''} nothing beyond chance."


def _share(evaluation: Evaluation) -> str:
    return write("accuracy", evaluation.accuracy)


def _end(found: hunt.Suspect, which: int) -> str:
    return "–" if found.ends is None else three_digits(found.ends[which])


_STEPS = (_broken, _float, _layer, _tensor, _findings, _remedy)
