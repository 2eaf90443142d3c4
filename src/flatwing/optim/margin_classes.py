"""The hull of the margins between several classes: one weight vector per class, all scores against all."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import override

from .margin import Hull, Soft, Vector

ROOT2 = float(np.sqrt(2.0))
Square = Float[np.ndarray, "k k"]


class Classes(Hull):
    """Margins (<w_a, x> - <w_b, x>) / (sqrt(2) |W|) of a sample x of class a over each other class b.

    A direction is W, (k, d), read row by row. Because |w_a - w_b| <= sqrt(2) |W|, every sample is at least the margin
    away from every boundary of its class; with two classes it is the distance to the one boundary. With
    `fit_intercept` each class also has a free intercept: the hull is then that of the *cycles* of classes, means of one
    difference a - b per edge, because intercepts cancel around a cycle and nowhere else. The least cycle is Karp's.
    `x` is (n, d), `y` the class of each row, 0 ... k-1, each at least once. Source: the joint separation of Crammer and
    Singer (2001), without slack. Cost of a pass: n d k + k^3.

    >>> hull = Classes(np.eye(3), np.arange(3), fit_intercept=False)
    >>> round(hull.hardest(np.eye(3).reshape(-1))[0], 12) == round(1 / ROOT2, 12)
    True
    """

    def __init__(self, x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], fit_intercept: bool) -> None:
        order = np.argsort(y, kind="stable")
        self.x, self.y = np.ascontiguousarray(x[order]), y[order]
        self.starts = np.flatnonzero(np.diff(self.y, prepend=-1))
        self.ends = np.append(self.starts[1:], len(y))
        self.count = len(self.starts)
        self.dim = self.count * x.shape[1]
        self.scale = float(np.sqrt((x * x).sum(1).max()))
        self.fit_intercept = fit_intercept
        self.offsets = np.zeros(self.count)  # of the loss at the last w, where the search at the next one begins

    def differences(self, w: Vector) -> Float[np.ndarray, "n k"]:
        """(own score - score of each class) / sqrt(2), rows sorted by class; inf for the own class."""
        scores = self.x @ w.reshape(self.count, -1).T
        rows = np.arange(len(self.y))
        margins = (scores[rows, self.y][:, None] - scores) / ROOT2
        margins[rows, self.y] = np.inf
        return margins

    def edges(self, margins: Float[np.ndarray, "n k"]) -> Square:
        """The least difference for each ordered pair of classes."""
        return np.minimum.reduceat(margins, self.starts, axis=0)

    @override
    def hardest(self, w: Vector) -> tuple[float, Vector]:
        margins = self.differences(w)
        least = self.edges(margins)
        cycle = least_cycle(least) if self.fit_intercept else [divmod(int(least.argmin()), self.count)]
        vertex = np.zeros((self.count, self.x.shape[1]))
        for a, b in cycle:
            row = self.x[self.starts[a] + int(margins[self.starts[a] : self.ends[a], b].argmin())]
            vertex[a] += row
            vertex[b] -= row
        value = sum(float(least[a, b]) for a, b in cycle) / len(cycle)
        return value, vertex.reshape(-1) / (ROOT2 * len(cycle))

    @override
    def soft(self, w: Vector) -> Soft:
        margins = self.differences(w)
        least = self.edges(margins)
        low = float(least.min())
        if self.fit_intercept:
            low = _mean(least, least_cycle(least))
            finite = np.where(np.isfinite(least), least, 0.0)
            shares = np.exp(finite[self.y] - margins)
            logs = np.log(np.maximum(np.add.reduceat(shares, self.starts, axis=0), 1e-300)) - finite
            self.offsets = balance(logs, self.offsets)
            margins = margins + (self.offsets[self.y][:, None] - self.offsets)
        bottom = float(margins.min())
        shares = np.exp(bottom - margins)
        total = float(shares.sum())
        pushes = -shares
        pushes[np.arange(len(self.y)), self.y] = shares.sum(1)
        point = (pushes.T @ self.x).reshape(-1) / (ROOT2 * total)
        log_loss = float(np.log(total / (len(self.y) * (self.count - 1)))) - bottom
        return Soft(log_loss, low, point)

    @override
    def centre(self) -> Vector:
        means = np.add.reduceat(self.x, self.starts, axis=0) / (self.ends - self.starts)[:, None]
        # the mean over all ordered pairs of classes, which is balanced, hence inside with intercepts, too
        return (means - means.mean(0)).reshape(-1) / (ROOT2 * (self.count - 1))

    def intercepts(self, w: Vector) -> Float[np.ndarray, " k"]:
        """The intercepts of the widest margin for the weights `w`, of mean 0; zeros without `fit_intercept`.

        They are shortest distances where an edge from a to b is as long as it exceeds the mean of the least cycle.
        """
        if not self.fit_intercept:
            return np.zeros(self.count)
        least = self.edges(self.differences(w))
        lengths = least - _mean(least, least_cycle(least))
        distances = np.zeros(self.count)
        for _ in range(self.count):
            distances = np.minimum(distances, (distances[:, None] + lengths).min(0))
        return ROOT2 * (distances - distances.mean())


def least_cycle(costs: Square) -> list[tuple[int, int]]:
    """The edges of the cycle with the least mean cost in the complete graph; inf on the diagonal, finite off it.

    Cost: k^3. Source: Karp (1978), A characterization of the minimum cycle mean in a digraph.

    >>> least_cycle(np.array([[np.inf, 1.0, 5.0], [5.0, np.inf, 1.0], [1.0, 5.0, np.inf]]))
    [(0, 1), (1, 2), (2, 0)]
    """
    k = len(costs)
    if k == 2:
        return [(0, 1), (1, 0)]
    walks, parents = [np.zeros(k)], []
    for _ in range(k):  # walks[m][v]: the least cost of m edges that end at v
        through = walks[-1][:, None] + costs
        parents.append(through.argmin(0))
        walks.append(through.min(0))
    means = np.stack([(walks[k] - walks[m]) / (k - m) for m in range(k)]).max(0)
    node = int(means.argmin())
    path = [node]
    for parent in reversed(parents):
        node = int(parent[node])
        path.append(node)
    path.reverse()
    # k edges visit k + 1 nodes, so the walk closes a cycle; the least of those it closes
    cycles: list[list[tuple[int, int]]] = []
    trail: list[int] = []
    for node in path:
        if node in trail:
            loop = trail[trail.index(node) :]
            cycles.append(list(zip(loop, [*loop[1:], node], strict=True)))
            trail = trail[: trail.index(node)]
        trail.append(node)
    return min(cycles, key=lambda cycle: _mean(costs, cycle))


def balance(logs: Square, offsets: Float[np.ndarray, " k"], tol: float = 1e-10, sweeps: int = 20) -> Vector:
    """Offsets b that minimise sum exp(logs_ab - b_a + b_b): what then flows out of each class flows in.

    Starts at `offsets` and moves the class that is most out of balance, each time exactly, at most `sweeps` k times.
    The diagonal is ignored. Source: Osborne (1960), On pre-conditioning of matrices, in logarithms.

    >>> balance(np.log(np.array([[1.0, 4.0], [1.0, 1.0]])), np.zeros(2)).round(6).tolist()
    [0.346574, -0.346574]
    """
    k = len(logs)
    flow = logs - offsets[:, None] + offsets
    flow[np.arange(k), np.arange(k)] = -np.inf
    offsets = offsets.copy()
    for _ in range(sweeps * k):
        high = flow.max()
        flows = np.exp(flow - high)
        # of the classes whose flows vanish next to the largest, only the order of size matters
        excess = np.log(np.maximum(flows.sum(1), 1e-300)) - np.log(np.maximum(flows.sum(0), 1e-300))
        a = int(np.abs(excess * np.maximum(flows.sum(1), flows.sum(0))).argmax())
        if abs(excess[a]) <= tol:
            break
        offsets[a] += excess[a] / 2
        flow[a] -= excess[a] / 2
        flow[:, a] += excess[a] / 2
    return offsets - offsets.mean()


def _mean(costs: Square, cycle: list[tuple[int, int]]) -> float:
    return float(sum(float(costs[a, b]) for a, b in cycle) / len(cycle))
