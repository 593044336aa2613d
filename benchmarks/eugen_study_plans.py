"""The trials of benchmarks/eugen_study.py."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Network:
    """Hidden layers of one kind."""

    kind: Literal["mlp", "eugen", "low-rank"]
    width: int  # of the hidden layers; nominal for EUGen
    features: int = 0  # m, or the rank
    order: int = 1
    shared: bool = False
    phi: str = "relu"
    norm: bool = False
    feature_bias: bool = False
    weight_gain: float = 1.0  # scale of the initial output weights
    projection_gain: float = 1.0
    trained_projections: bool = True
    candidates: int = 0  # features at the start of training, of which m are kept at the trial's selection_at

    def __str__(self) -> str:
        words = [f"{self.kind} {self.width}"]
        if self.kind != "mlp":
            words.append(f"m={self.features}")
        if self.order > 1:
            words.append(f"order {self.order}{' shared' if self.shared else ''}")
        words.append(self.phi)
        words += [f"of {self.candidates}"] if self.candidates else []
        words += ["norm"] if self.norm else []
        words += ["feature bias"] if self.feature_bias else []
        words += ["frozen G"] if not self.trained_projections else []
        for name, gain in (("W", self.weight_gain), ("G", self.projection_gain)):
            words += [f"{name} x{gain:g}"] if gain != 1 else []
        return ", ".join(words)


def described(network: Network, color: Network | None) -> str:
    """Describe the layers of a field, whose color network may differ from its density network."""
    return f"{network}; color: {color}" if color else str(network)


@dataclass(frozen=True)
class Teacher:
    """A trained MLP whose layers the network of a trial takes over before its own training."""

    width: int
    rate: float
    steps: int
    rows: str = "teacher"
    selection: str = "contribution"
    solver: str = "ridge"


@dataclass(frozen=True)
class Trial:
    """One training run."""

    task: str
    network: Network
    rate: float
    steps: int  # excluding the teacher's
    seed: int
    projection_rate: float = 1.0  # learning rate of the projections, relative to the others'
    teacher: Teacher | None = None
    table_rate: float = 1.0  # learning rate of the hash grid, relative to the method's
    selection_at: float = 0.5  # share of the steps after which features are selected
    restart: float = 0.0  # networks' learning rate after the selection, relative to the initial one; 0: no restart
    dense_after: bool = False  # after the selection, train the merged layers as a narrow MLP, without their factors
    color: Network | None = None  # layers of the color network, if they differ from the density network's

    @property
    def key(self) -> str:
        """Identifies the trial in a file of results."""
        values = asdict(self)
        if self.color is None:
            del values["color"]  # keeps the keys of results written before this field existed
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def grid(
    task: str,
    networks: Iterable[Network],
    rates: Iterable[float],
    steps: int,
    seeds: Iterable[int] = (0,),
    teacher: Teacher | None = None,
) -> list[Trial]:
    """Every network with every learning rate and seed."""
    return [Trial(task, n, r, steps, s, teacher=teacher) for s, n, r in itertools.product(seeds, networks, rates)]


def mlp(width: int, phi: str = "relu") -> Network:
    return Network("mlp", width, phi=phi)


def eugen(features: int, width: int, **options: object) -> Network:
    return Network("eugen", width, features, **options)  # type: ignore[arg-type]


PICTURE_STEPS = 2000
MLP_RATES = (4e-3, 8e-3, 1.6e-2)
EUGEN_RATES = (2.5e-4, 5e-4, 1e-3)


def rates() -> list[Trial]:
    """Photo, one seed: learning rates of both sides, and ways to give the first layer a constant."""
    trials = grid("photo", [mlp(64)], MLP_RATES, PICTURE_STEPS)
    trials += grid(
        "photo",
        [eugen(64, 256, feature_bias=True), eugen(64, 256, norm=True), eugen(64, 128, feature_bias=True)],
        EUGEN_RATES,
        PICTURE_STEPS,
    )
    trials += grid("photo", [mlp(92)], MLP_RATES, PICTURE_STEPS)
    return trials


def shapes() -> list[Trial]:
    """Photo, one seed: nominal width, order, Phi, gains."""
    k2 = eugen(32, 64, order=2, shared=True, feature_bias=True)
    fast = (1e-3, 2e-3, 4e-3)
    trials = grid("photo", [eugen(64, 64, feature_bias=True)], fast, PICTURE_STEPS)
    trials += grid("photo", [k2], fast, PICTURE_STEPS)
    trials += grid("photo", [eugen(26, 64, order=2, feature_bias=True)], fast, PICTURE_STEPS)
    trials += grid("photo", [replace(k2, width=256)], (5e-4, 1e-3, 2e-3), PICTURE_STEPS)
    trials += grid("photo", [mlp(64, "gelu")], (4e-3, 8e-3), PICTURE_STEPS)
    trials += grid("photo", [replace(k2, phi="gelu")], (1e-3, 2e-3), PICTURE_STEPS)
    trials += grid("photo", [Network("low-rank", 128, 16)], (2e-3, 4e-3), PICTURE_STEPS)
    base = eugen(64, 128, feature_bias=True)
    for gains in (
        {"weight_gain": 2.0},
        {"weight_gain": 0.5},
        {"projection_gain": 2.0},
        {"projection_gain": 4.0, "weight_gain": 0.25},
        {"projection_gain": 0.25, "weight_gain": 4.0},
    ):
        trials += grid("photo", [replace(base, **gains)], (1e-3, 2e-3), PICTURE_STEPS)
    trials += grid("photo", [mlp(64, "sin")], (1e-3, 2e-3), PICTURE_STEPS)
    trials += grid("photo", [replace(k2, phi="sin")], (1e-3,), PICTURE_STEPS)
    return trials


SCENE_STEPS = 600


SCENE_RATES = {"mlp": (1e-2, 5e-3, 2e-2), "eugen": (4e-3, 2e-3, 8e-3), "low-rank": (1e-2, 5e-3)}
EUGEN_32, EUGEN_16 = (eugen(m, 64, weight_gain=2.0) for m in (32, 16))


def scene(task: str, seed: int, number: int = 1, networks: tuple[Network, ...] = ()) -> list[Trial]:
    """A scene, one seed: each network from scratch with the first `number` learning rates of its kind."""
    chosen = networks or (mlp(32), EUGEN_32, mlp(64), EUGEN_16, mlp(16))
    rates = {network: SCENE_RATES[network.kind][:number] for network in chosen}
    return [trial for n, r in rates.items() for trial in grid(task, [n], r, SCENE_STEPS, (seed,))]


def taken_over(task: str, seed: int) -> list[Trial]:
    """A scene, one seed: a wide MLP taken over by fewer features, in closed form."""
    teacher = Teacher(64, SCENE_RATES["mlp"][0], SCENE_STEPS)
    return grid(task, [mlp(32), mlp(24), mlp(16)], (0.0,), 0, (seed,), teacher)


def taken_over_pictures() -> list[Trial]:
    """Photo, one seed: a wide MLP first, its layers taken over, the remaining steps on the narrow network."""
    teacher = Teacher(128, 4e-3, PICTURE_STEPS // 2)
    half = PICTURE_STEPS - teacher.steps
    trials = grid("photo", [mlp(64)], (2e-3, 4e-3, 8e-3), half, teacher=teacher)
    trials += grid("photo", [eugen(64, 128, feature_bias=True)], (2.5e-4, 5e-4, 1e-3), half, teacher=teacher)
    by_chance = replace(teacher, selection="random")
    trials += grid("photo", [mlp(64)], (4e-3,), half, teacher=by_chance)
    trials += grid("photo", [mlp(128)], (4e-3,), PICTURE_STEPS)
    return trials


def confirm() -> list[Trial]:
    """The decisive trials, in order of importance."""
    trials = scene("lego", 0) + scene("lego", 0, 3, (EUGEN_32, mlp(64), mlp(32)))
    trials += scene("lego", 1) + scene("lego", 2)
    trials += scene("lego", 0, 2, (Network("low-rank", 64, 8),)) + taken_over("lego", 0)
    trials += scene("fox", 0) + taken_over_pictures()
    trials += scene("lego", 0, 1, (replace(EUGEN_32, feature_bias=True), replace(EUGEN_32, norm=True)))
    return trials + taken_over("lego", 1) + scene("fox", 1) + scene("fox", 2)


LONGER_STEPS = 2000


def screening() -> list[Trial]:
    """lego, 2,000 steps: which of EUGen's choices matter at the cost of narrow MLPs, both with three learning rates."""
    mlps = [mlp(width) for width in (16, 32, 64)]
    second = [eugen(m, 64, order=2, shared=True, phi=phi) for m in (8, 16) for phi in ("relu", "identity")]
    trials = []
    trials += grid("lego", mlps, SCENE_RATES["mlp"], LONGER_STEPS)
    trials += grid("lego", [EUGEN_16, EUGEN_32], SCENE_RATES["eugen"], LONGER_STEPS)
    trials += grid("lego", second, SCENE_RATES["eugen"], LONGER_STEPS)
    for changed in ({"norm": True}, {"feature_bias": True}, {"weight_gain": 1.0}, {"weight_gain": 4.0}):
        trials += grid("lego", [replace(EUGEN_32, **changed)], (4e-3,), LONGER_STEPS)
    for factor in (0.25, 0.5, 2.0, 4.0):
        trials.append(Trial("lego", EUGEN_32, 4e-3, LONGER_STEPS, 0, projection_rate=factor))
    return trials


def wide_first() -> list[Trial]:
    """lego, 2,000 steps: a wide MLP for part of the steps, fewer features for the rest."""
    trials = []
    for first in (1000, 1400):
        teacher = Teacher(64, 1e-2, first)
        students = [mlp(16), mlp(32), eugen(16, 64, feature_bias=True), eugen(32, 64, feature_bias=True)]
        for student in students:
            rates = (5e-3, 1e-2) if student.kind == "mlp" else (2e-3, 4e-3)
            trials += grid("lego", [student], rates, LONGER_STEPS - first, teacher=teacher)
    return trials


def phis() -> list[Trial]:
    """Photo, one seed: Phi, for the MLP and for EUGen layers of the same cost."""
    trials = []
    for phi in ("gelu", "sin", "relu", "squared_relu"):
        trials += grid("photo", [mlp(64, phi)], (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), PICTURE_STEPS)
        equal = eugen(64, 64, phi=phi, feature_bias=True)
        trials += grid("photo", [equal], (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), PICTURE_STEPS)
    for gain, rates in ((0.5, (4e-3, 8e-3)), (2.0, (5e-4, 1e-3, 2e-3, 4e-3, 8e-3))):
        trials += grid("photo", [replace(mlp(64, "sin"), weight_gain=gain)], rates, PICTURE_STEPS)
        for gains in ({"projection_gain": gain}, {"weight_gain": gain}):
            changed = replace(eugen(64, 64, phi="sin", feature_bias=True), **gains)
            trials += grid("photo", [changed], rates, PICTURE_STEPS)
    # Powers grow from layer to layer, hence smaller initial weights.
    trials += grid("photo", [replace(mlp(64, "squared_relu"), weight_gain=0.5)], (1e-3, 4e-3), PICTURE_STEPS)
    for width in (32, 44, 92):
        trials += grid("photo", [mlp(width, "sin")], (8e-3, 1.6e-2), PICTURE_STEPS)
    trials += grid("photo", [eugen(44, 64, phi="sin", feature_bias=True)], (4e-3, 8e-3), PICTURE_STEPS)
    trials += grid("photo", [eugen(64, 128, phi="sin", feature_bias=True)], (2e-3, 4e-3, 8e-3), PICTURE_STEPS)
    return trials


def factors() -> list[Trial]:
    """Photo, one seed: separate learning rates for projections and output weights."""
    trials = []
    for phi, slow in itertools.product(("sin", "relu"), (1e-3, 2e-3, 4e-3)):
        network = eugen(64, 64, phi=phi, feature_bias=True)
        for fast in (2.0, 4.0, 8.0):
            trials.append(Trial("photo", network, slow, PICTURE_STEPS, 0, projection_rate=fast))
            trials.append(Trial("photo", network, slow * fast, PICTURE_STEPS, 0, projection_rate=1 / fast))
    trials += grid("photo", [mlp(64, "sin"), mlp(64, "gelu")], (3.2e-2,), PICTURE_STEPS)
    return trials + grid("photo", [mlp(128)], (4e-3, 8e-3), PICTURE_STEPS)


def control() -> list[Trial]:
    """lego, 2,000 steps: the effect of restarting the learning rate in the middle, on its own."""
    return [Trial("lego", mlp(width), 5e-3, 1000, 0, teacher=Teacher(width, 1e-2, 1000)) for width in (16, 64, 32)]


FULL_STEPS = 4000
SELECTED_32, SELECTED_16 = (replace(network, candidates=64) for network in (EUGEN_32, EUGEN_16))


def full(task: str, seed: int) -> list[Trial]:
    """A scene, one seed, the method's own number of steps: narrow MLPs, EUGen, and features selected in the middle."""
    trials = grid(task, [mlp(16), mlp(32), mlp(64)], (1e-2,), FULL_STEPS, (seed,))
    return trials + grid(task, [SELECTED_16, SELECTED_32, EUGEN_16, EUGEN_32], (4e-3,), FULL_STEPS, (seed,))


def full_wide_first(task: str, seed: int) -> list[Trial]:
    """The same for an MLP whose units are taken over in the middle; on lego, one seed, also MLPs that only restart."""
    half = FULL_STEPS // 2
    wide = Teacher(64, 1e-2, half)
    trials = grid(task, [mlp(16), mlp(32), mlp(64)], (5e-3,), half, (seed,), wide)
    for width in (16, 32) if (task, seed) == ("lego", 0) else ():
        trials += grid(task, [mlp(width)], (5e-3,), half, (seed,), replace(wide, width=width))
    return trials


def full_choices() -> list[Trial]:
    """lego, 4,000 steps, one seed: other ways to get EUGen layers ahead of the MLP of their cost."""
    wide = Teacher(64, 1e-2, FULL_STEPS // 2)
    students = [eugen(m, 64, feature_bias=True) for m in (16, 32)]
    trials = grid("lego", students, (4e-3, 2e-3), FULL_STEPS // 2, teacher=wide)
    products = [eugen(m, 64, order=2, shared=True, phi="identity") for m in (8, 16)]
    trials += grid("lego", products, (8e-3, 4e-3), FULL_STEPS)
    trials += grid("lego", [eugen(64, 64, weight_gain=2.0)], (4e-3,), FULL_STEPS)
    for factor in (0.5, 2.0):
        trials += [replace(trial, projection_rate=factor) for trial in grid("lego", [SELECTED_16], (4e-3,), FULL_STEPS)]
    for selected, width in ((SELECTED_16, 16), (SELECTED_32, 32)):
        trials += grid("lego", [replace(selected, feature_bias=True)], (4e-3,), FULL_STEPS)
        trials += [replace(trial, dense_after=True) for trial in grid("lego", [selected], (4e-3,), FULL_STEPS)]
        for phi in ("gelu", "sin", "squared_relu"):
            trials += grid("lego", [replace(selected, phi=phi)], (4e-3,), FULL_STEPS)
            trials += grid("lego", [mlp(width, phi)], (1e-2,), FULL_STEPS)
    return trials


def on_both_scenes(trials: Callable[[str, int], list[Trial]]) -> list[Trial]:
    """The trials for lego and fox, three seeds each."""
    return [trial for seed in range(3) for task in ("lego", "fox") for trial in trials(task, seed)]


def restarted(task: str, seed: int) -> list[Trial]:
    """A scene, one seed: learning rates decay once before the selection of features and once after it."""
    trials = grid(task, [SELECTED_16, SELECTED_32], (4e-3,), FULL_STEPS, (seed,))
    return [replace(trial, restart=0.5) for trial in trials]


def slower() -> list[Trial]:
    """4,000 steps, half of the learning rates: lego with three seeds, the MLPs on fox with one."""
    trials = []
    for seed in range(3):
        trials += grid("lego", [SELECTED_16, SELECTED_32], (2e-3,), FULL_STEPS, (seed,))
    trials += grid("fox", [mlp(16), mlp(64), mlp(32)], (5e-3,), FULL_STEPS)
    return trials + grid("lego", [mlp(16), mlp(32)], (5e-3,), FULL_STEPS, range(3))


PRODUCTS = eugen(8, 64, order=2, shared=True, phi="identity", feature_bias=True, weight_gain=2.0)


def products() -> list[Trial]:
    """lego, 2,000 steps, one seed: layers of order 2 and 3 whose features are the products themselves."""
    base = eugen(8, 64, order=2, shared=True, phi="identity")
    trials = grid("lego", [base], (1.6e-2,), LONGER_STEPS)
    changes: tuple[dict[str, object], ...] = (
        {"weight_gain": 2.0},
        {"feature_bias": True},
        {"feature_bias": True, "weight_gain": 2.0},
        {"width": 32},
        {"width": 128},
        {"phi": "gelu"},
        {"norm": True},
        {"projection_gain": 2.0},
    )
    for changed in changes:
        trials += grid("lego", [replace(base, **changed)], (8e-3,), LONGER_STEPS)  # type: ignore[arg-type]
    trials += grid("lego", [replace(base, weight_gain=2.0)], (4e-3,), LONGER_STEPS)
    return trials + grid("lego", [replace(base, features=5, order=3)], (8e-3, 4e-3), LONGER_STEPS)


def projection_rates() -> list[Trial]:
    """lego, 4,000 steps, one seed: projections that learn faster than output weights, with selection and products."""
    trials = []
    for network in (SELECTED_16, SELECTED_32):
        at_once = grid("lego", [network], (4e-3,), FULL_STEPS)
        trials += [replace(trial, projection_rate=factor) for trial in at_once for factor in (4.0, 2.0, 8.0)]
    for features in (8, 16):
        for network in (replace(PRODUCTS, features=features), replace(PRODUCTS, features=features, width=128)):
            for rate, factor in ((4e-3, 2.0), (8e-3, 1.0)):
                trials.append(Trial("lego", network, rate, FULL_STEPS, 0, projection_rate=factor))
    return trials


LOW_RANK_32 = Network("low-rank", 64, 32)
PRODUCTS_8, PRODUCTS_16 = (replace(PRODUCTS, features=features, candidates=32) for features in (8, 16))


def selected_products() -> list[Trial]:
    """lego, 4,000 steps, one seed: products selected from more candidates."""
    of_32 = [PRODUCTS_8, PRODUCTS_16]
    of_64 = [replace(network, candidates=64) for network in of_32]
    trials = grid("lego", of_32, (2e-3,), FULL_STEPS)
    trials += grid("lego", of_64, (2e-3, 4e-3), FULL_STEPS)
    trials += grid("lego", [replace(of_32[0], width=128), replace(of_32[0], weight_gain=1.0)], (4e-3,), FULL_STEPS)
    trials.append(Trial("lego", of_32[0], 4e-3, FULL_STEPS, 0, projection_rate=0.5))
    for network in of_32:
        for rate, factor in ((4e-3, 2.0), (8e-3, 1.0), (4e-3, 1.0)):
            trials.append(Trial("lego", network, rate, FULL_STEPS, 0, projection_rate=factor))
    return trials


def full_products(task: str, seed: int) -> list[Trial]:
    """A scene, one seed: products selected in the middle."""
    return grid(task, [PRODUCTS_16, PRODUCTS_8], (4e-3,), FULL_STEPS, (seed,))


def mixed() -> list[Trial]:
    """Both scenes, 4,000 steps, one seed: products in one of the two networks, ReLU in the other."""
    trials = []
    for task in ("fox", "lego"):
        for density, color in ((PRODUCTS_16, SELECTED_32), (SELECTED_32, PRODUCTS_16)):
            trials.append(Trial(task, density, 4e-3, FULL_STEPS, 0, color=color))
    return trials


def full_fast_projections(task: str, seed: int) -> list[Trial]:
    """A scene, one seed: features selected in the middle, projections with twice the learning rate."""
    trials = grid(task, [SELECTED_16, SELECTED_32], (4e-3,), FULL_STEPS, (seed,))
    return [replace(trial, projection_rate=2.0) for trial in trials]


def faster() -> list[Trial]:
    """fox, 4,000 steps: two and four times the learning rates, MLPs at twice with three seeds."""
    trials = grid("fox", [mlp(16), mlp(32), mlp(64)], (2e-2, 4e-2), FULL_STEPS)
    trials += grid("fox", [SELECTED_16, SELECTED_32], (8e-3,), FULL_STEPS)
    trials += grid("fox", [mlp(16), mlp(64), mlp(32)], (2e-2,), FULL_STEPS, (1, 2))
    wide = Teacher(64, 1e-2, FULL_STEPS // 2)
    return trials + grid("fox", [mlp(16), mlp(32)], (1e-2,), FULL_STEPS // 2, teacher=wide)


def own_settings() -> list[Trial]:
    """4,000 steps of 2^15 samples, as in the method itself: learning rates of the networks compared."""
    trials = []
    for task in ("fox-32k", "lego-32k"):
        trials += grid(task, [mlp(64)], (1e-2, 5e-3), FULL_STEPS)
        trials += grid(task, [EUGEN_32], (4e-3, 2e-3), FULL_STEPS)
    trials += grid("lego-32k", [LOW_RANK_32], (1e-2, 5e-3), FULL_STEPS)
    trials += grid("fox-32k", [mlp(32)], (1e-2,), FULL_STEPS)
    trials += grid("fox-32k", [SELECTED_32, SELECTED_16], (4e-3,), FULL_STEPS)
    trials += grid("fox-32k", [mlp(16)], (1e-2, 2e-2), FULL_STEPS)
    for task in ("fox-32k", "lego-32k"):
        trials += grid(task, [mlp(64)], (2e-2,), FULL_STEPS)
        trials += grid(task, [EUGEN_32], (8e-3,), FULL_STEPS)
    trials += grid("fox-32k", [LOW_RANK_32], (1e-2, 5e-3), FULL_STEPS)
    trials += grid("fox-32k", [PRODUCTS_16], (4e-3, 8e-3), FULL_STEPS)
    return trials + grid("lego-32k", [PRODUCTS_16], (4e-3, 8e-3), FULL_STEPS)


FOURIER_STEPS = 2000


def fourier() -> list[Trial]:
    """Rays of lego through eight hidden layers on Fourier features: EUGen layers, their selection, a wide MLP first."""
    equal = eugen(128, 256, feature_bias=True)
    trials = grid("fourier", [mlp(256), equal], (5e-4, 1e-3), FOURIER_STEPS)
    trials += grid("fourier", [mlp(128)], (5e-4, 1e-3, 2e-3, 4e-3), FOURIER_STEPS)
    trials += grid("fourier", [equal], (2.5e-4, 2e-3), FOURIER_STEPS)
    trials += grid("fourier", [mlp(64), Network("low-rank", 256, 64)], (4e-3,), FOURIER_STEPS)
    trials += grid("fourier", [replace(equal, candidates=256)], (1e-3,), FOURIER_STEPS)
    half = FOURIER_STEPS // 2
    wide = Teacher(256, 1e-3, half)
    trials += grid("fourier", [mlp(128)], (1e-3,), half, teacher=wide)
    return trials + grid("fourier", [equal], (5e-4,), half, teacher=wide)


def selecting() -> list[Trial]:
    """lego, 2,000 steps: features selected from more candidates; when, and from how many."""
    trials = grid("lego", [SELECTED_16, SELECTED_32], (4e-3,), LONGER_STEPS)
    trials += [replace(trials[0], selection_at=at) for at in (0.25, 0.75)]
    trials += grid("lego", [replace(SELECTED_16, candidates=128)], (4e-3,), LONGER_STEPS)
    return trials + grid("lego", [SELECTED_16], (8e-3, 2e-3), LONGER_STEPS)


PLANS: dict[str, Callable[[], list[Trial]]] = {
    "rates": rates,
    "shapes": shapes,
    "confirm": confirm,
    "screening": screening,
    "wide-first": wide_first,
    "phis": phis,
    "factors": factors,
    "control": control,
    "full": lambda: on_both_scenes(full),
    "full-wide-first": lambda: on_both_scenes(full_wide_first),
    "full-choices": full_choices,
    "full-fast-projections": lambda: on_both_scenes(full_fast_projections),
    "full-products": lambda: on_both_scenes(full_products),
    "restarts": lambda: on_both_scenes(restarted),
    "slower": slower,
    "faster": faster,
    "products": products,
    "mixed": mixed,
    "projection-rates": projection_rates,
    "selected-products": selected_products,
    "own-settings": own_settings,
    "fourier": fourier,
    "selecting": selecting,
}
