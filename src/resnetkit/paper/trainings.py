"""The sections on what training comes to: curves, the existence argument, starts and blocks, ImageNet's networks."""

from __future__ import annotations

from resnetkit.drawing import HELD, INK, TRAIN, Chart
from resnetkit.paper.drawings import STYLES, Curve, Panel, Row, draw_panels, draw_rows
from resnetkit.paper.records import Record, spread
from resnetkit.paper.sections import (
    SAME,
    Groups,
    Section,
    depths,
    deviations_of,
    error_curves,
    mean_curve,
    settings_of,
    test_errors,
    train_errors,
)


def curves(budget: str, groups: Groups) -> Section | None:
    """Figures 1 and 6."""
    plain, residual = depths(groups, "plain"), depths(groups, "resnet")
    if len(residual) < 2:
        return None
    shown = sorted({*plain, *residual})
    styles = {depth: STYLES[index % len(STYLES)] for index, depth in enumerate(shown)}
    colours = {depth: HELD if depth == shown[0] else TRAIN if depth == shown[-1] else INK for depth in shown}
    everything = [record for d in plain for record in groups[f"plain{d}"]] + [
        record for d in residual for record in groups[f"resnet{d}"]
    ]
    # What happens in the first tenth, where all fall from a guess, would leave no room for what comes after.
    late = [y for record in everything for x, y in record.train_curve if x >= 0.1 * record.train_curve[-1][0]]
    top = max(late, default=100.0) + 2
    bottom = max(0.0, min(min(r.final_train_error, r.test_error) for r in everything) - 3)
    panels, seen, gaps = [], [], {}
    for kind, name, found in (("plain", "plain", plain), ("resnet", "residual", residual)):
        if not found:
            continue
        lines = [c for d in found for c in error_curves(groups[f"{kind}{d}"], f"{d} layers", colours[d], styles[d])]
        mark = crossing(groups, found) if kind == "resnet" and budget != "laptop" else None
        shown_mark = None if mark is None else (mark, f"{found[-1]} no worse\nthan {found[0]}")
        panels.append(Panel(f"{name} networks", lines, "iterations", "error, %", limits=(bottom, top), mark=shown_mark))
        low, high = (train_errors(groups[f"{kind}{d}"]) for d in (found[0], found[-1]))
        seen.append(
            f"{name.capitalize()}: training error {low} with {found[0]} layers and {high} with {found[-1]}, that is "
            f"{high.mean - low.mean:+.1f} points; test error {test_errors(groups[f'{kind}{found[0]}'])} and "
            f"{test_errors(groups[f'{kind}{found[-1]}'])}."
        )
        gaps[kind] = high.mean - low.mean
        if mark is not None:
            seen.append(
                f"From iteration {mark:,.0f} on, {found[-1]} residual layers err no more than {found[0]} in training: "
                "depth pays, once training is long enough."
            )
    if {"plain", "resnet"} <= set(gaps) and gaps["plain"] > 0:
        seen.append(
            f"Depth costs the residual networks {gaps['resnet']:.1f} points where it costs the plain ones "
            f"{gaps['plain']:.1f}."
            + (" That it pays shows when they are trained longer." if gaps["resnet"] > 0 else "")
        )
    caption = "Thin: training error. Bold: test error. Shaded: from the lowest to the highest seed."
    message = f"{caption} {' '.join(seen)}"
    chart = Chart("Error against iterations", caption, draw_panels(panels, f"curves-{budget}", message))
    return Section(
        key=f"curves-{budget}",
        title="Deeper and worse, unless there are shortcuts (figures 1 and 6)",
        paper="Plain networks get worse with depth, in training too, so it is no over-fitting: this is degradation. "
        "Residual networks of the same depth, width and number of parameters do not.",
        seen=tuple(seen),
        charts=(chart,),
        settings=settings_of(groups[f"resnet{residual[0]}"], {"": everything}),
        deviations=deviations_of(everything),
    )


def crossing(groups: Groups, found: list[int]) -> float | None:
    """The iteration from which the deepest network's mean training error stays at or below the shallowest one's."""
    x, shallow, _, _ = mean_curve(groups[f"resnet{found[0]}"])
    _, deep, _, _ = mean_curve(groups[f"resnet{found[-1]}"])
    at = None
    for place, low, high in zip(x, shallow, deep, strict=False):
        if high > low:
            at = None
        elif at is None:
            at = place
    return at


def existence(budget: str, groups: Groups) -> Section | None:
    """The argument of Sec. 1."""
    built = [record for record in groups.get("plain20", ()) if record.measured.get("deepened")]
    trained = [record for record in groups.get("plain56", ()) if record.measured.get("train")]
    if not built or not trained:
        return None

    def errors(found: list[Record], correct: str = "train") -> list[float]:
        return [100 * (1 - r.measured[correct]["correct"] / r.measured["train"]["n"]) for r in found]

    rows = []
    for label, values, colour in (
        ("plain-20, trained", errors(built), HELD),
        ("plain-56, built from it with identity layers", errors(built, "deepened"), HELD),
        ("plain-56, trained from He's initialisation", errors(trained), TRAIN),
    ):
        found = spread(values)
        rows.append(Row(label, found.mean, found.low, found.high, values, colour))
    difference = max(record.measured["deepened"]["largest_difference"] for record in built)
    gap = rows[2].mean - rows[1].mean
    seen = (
        f"The network that is built answers as the shallow one does: the largest difference of any logit on all "
        f"training pictures is {difference:g}, and it makes the very same mistakes.",
        f"A network of the same 56 layers, trained, errs {gap:.1f} points more. Better weights exist, and the training "
        "does not find them: that gap is degradation.",
    )
    caption = "Error on the training pictures, evaluated without augmentation."
    message = f"{caption} {' '.join(seen)}"
    chart = Chart("Error on the training pictures", caption,
                  draw_rows(rows, "training error, %", f"existence-{budget}", message))  # fmt: skip
    return Section(
        key=f"existence-{budget}",
        title="A deeper network need not be worse (section 1)",
        paper="A deep network could be the shallow one with identity layers added, so its training error need not be "
        "higher. That is an argument for the existence of a solution, not for finding it.",
        seen=seen,
        charts=(chart,),
        settings=SAME,
        deviations=(
            "the paper gives the argument only in words; identity layers are Dirac kernels with neutral normalisation",
        ),
    )


def initialisation(budget: str, groups: Groups) -> Section | None:
    """The 2 x 2 x 2 study."""
    names = {
        f"{kind}20-{norm}-{init}": (word, with_norm, start)
        for norm, with_norm in (("bn", "BN"), ("nobn", "no BN"))
        for init, start in (("he", "He"), ("small", "std 0.01"))
        for kind, word in (("resnet", "residual"), ("plain", "plain"))
    }
    if not set(names) <= set(groups):
        return None
    rows = []
    for name, (word, norm, start) in names.items():
        values = [record.final_train_error for record in groups[name]]
        found = spread(values)
        gone = sum(record.diverged is not None for record in groups[name])
        label = f"{norm}, {start}, {word}" + (f" ({gone} diverged)" if gone else "")
        rows.append(
            Row(
                label,
                found.mean,
                max(0.0, found.low),
                min(100.0, found.high),
                values,
                HELD if word == "residual" else TRAIN,
            )
        )
    mean = {name: row.mean for name, row in zip(names, rows, strict=True)}

    def effect(without: str, having: str) -> float:
        """Points that a thing takes off the error, on average over the pairs that differ in it alone."""
        pairs = [(mean[name], mean[name.replace(without, having)]) for name in mean if without in name]
        return sum(worse - better for worse, better in pairs) / len(pairs)

    with_bn, bare = (
        sum(mean[f"{kind}20-{norm}-small"] - mean[f"{kind}20-{norm}-he"] for kind in ("plain", "resnet")) / 2
        for norm in ("bn", "nobn")
    )
    seen = (
        f"On average over the other two, normalisation takes {effect('-nobn-', '-bn-'):.1f} points off the error, He's "
        f"initialisation {effect('small', 'he'):.1f} and shortcuts {effect('plain', 'resnet'):.1f}.",
        f"He's initialisation is worth {bare:.1f} points without normalisation and {with_bn:.1f} with it. A guess "
        f"errs in {groups['plain20-bn-he'][0].guessing:.0f}\u00a0%.",
    )
    caption = "Training error of 20 layers."
    message = f"{caption} {' '.join(seen)}"
    chart = Chart("Training error", caption, draw_rows(rows, "training error, %", f"initialisation-{budget}", message))
    first = groups["plain20-bn-he"]
    return Section(
        key=f"initialisation-{budget}",
        title="What normalisation, initialisation and shortcuts each do",
        paper="Normalised initialisation and normalisation layers let networks of tens of layers begin to converge at "
        "all; what is left when they do is degradation.",
        seen=seen,
        charts=(chart,),
        settings=settings_of(first, {name: groups[name] for name in names}),
        deviations=("the paper has no such study; a learning rate that all eight can take", *deviations_of(first)),
    )


def preactivation(budget: str, groups: Groups) -> Section | None:
    """arXiv 1603.05027."""
    names = [name for name in groups if name.startswith("preresnet")]
    if not names:
        return None
    depth = names[0].removeprefix("preresnet")
    shown = [(f"resnet{depth}", "as in the paper", HELD), (names[0], "pre-activation", TRAIN),
             (f"resnet{depth}-depth", "stochastic depth", INK)]  # fmt: skip
    shown = [(name, label, colour) for name, label, colour in shown if name in groups]
    lines = []
    for index, (name, label, colour) in enumerate(shown):
        lines += error_curves(groups[name], label, colour, STYLES[index])
    seen = tuple(
        f"{label[:1].upper()}{label[1:]}: training error {train_errors(groups[name])}, test error "
        f"{test_errors(groups[name])}."
        for name, label, _ in shown
    )
    caption = "Thin: training error. Bold: test error."
    message = f"{caption} {' '.join(seen)}"
    panel = Panel(f"{depth} layers, residual", lines, "iterations", "error, %")
    chart = Chart(
        "Error against iterations", caption, draw_panels([panel], f"preactivation-{budget}", message, columns=1)
    )
    found = groups[names[0]]
    return Section(
        key=f"preactivation-{budget}",
        title="The block that came later (arXiv 1603.05027)",
        paper="With normalisation and ReLU before each convolution, nothing stands between one addition and the next; "
        "the authors find it easier to train when networks are very deep. Stochastic depth (arXiv 1603.09382) leaves "
        "blocks out at random.",
        seen=seen,
        charts=(chart,),
        settings=settings_of(found, {name: groups[name] for name, _, _ in shown}),
        deviations=deviations_of(found),
    )


def imagenet(budget: str, groups: Groups) -> Section | None:
    """Figure 4, tables 2 and 3."""
    found = {name.removeprefix("imagenet-"): group for name, group in groups.items() if name.startswith("imagenet-")}
    if not {"plain18", "plain34"} & set(found):
        return None
    panels = []
    for kind, title in (("plain", "plain networks"), ("resnet", "residual networks, shortcut A")):
        lines: list[Curve] = []
        for name, colour, style in ((f"{kind}18", HELD, STYLES[0]), (f"{kind}34", TRAIN, STYLES[1])):
            key = name if kind == "plain" else f"{name}-A"
            if key in found:
                lines += error_curves(found[key], f"{name[-2:]} layers", colour, style)
        if lines:
            panels.append(Panel(title, lines, "iterations", "error, %"))
    seen = tuple(
        f"{name}: training error {train_errors(group)}, validation error {test_errors(group)}."
        for name, group in found.items()
    )
    caption = "Thin: training error. Bold: validation error."
    message = f"{caption} {' '.join(seen)}"
    first = next(iter(found.values()))
    recipe = first[0].recipe
    small = recipe["schedule"]["steps"] != 600000
    away = [f"{first[0].environment['data']} instead of ImageNet, single centre crop instead of ten"] if small else []
    if small:
        away.append(
            f"input {recipe['data']['size']} instead of 224, {recipe['schedule']['steps']:,} iterations of "
            f"{recipe['optim']['batch']} instead of up to 600,000 of 256; far from converged: networks so short of "
            "training compare how fast they learn, not how well"
        )
    return Section(
        key=f"imagenet-{budget}",
        title="ImageNet's networks: 18 and 34 layers, shortcuts A, B and C (figure 4, tables 2 and 3)",
        paper="Plain networks of 34 layers err more than those of 18 (28.54 against 27.94\u00a0%), residual ones less "
        "(25.03 against 27.88\u00a0%); projections B and C help a little more.",
        seen=seen,
        charts=(Chart("Error against iterations", caption, draw_panels(panels, f"imagenet-{budget}", message)),),
        settings=settings_of(first, found),
        deviations=tuple(away),
    )
