"""Run directories of a known Gaussian score model, for the tests of the report.

Members score N(shift, 1), non-members N(0, 1), so the true AUC of an attack is
Phi(shift / sqrt 2). The summary is computed here by plain counting over all pairs,
without the package.
"""

import json
from pathlib import Path

import numpy as np

SHIFTS = {
    "lt_mia": 2.1,
    "reference": 1.6,
    "ratio": 1.5,
    "wbc": 1.3,
    "ez": 1.2,
    "binoculars": 0.9,
    "min_k_plus_plus": 0.6,
    "loss": 0.4,
    "zlib": 0.35,
    "some_future_attack": 0.1,
}


def pairwise_auc(members: np.ndarray, nonmembers: np.ndarray) -> float:
    wins = (members[:, None] > nonmembers[None]).mean()
    return float(wins + 0.5 * (members[:, None] == nonmembers[None]).mean())


def conservative_tpr(members: np.ndarray, nonmembers: np.ndarray, f: float) -> float:
    best = 0.0
    for threshold in np.concatenate([members, nonmembers]):
        if (nonmembers >= threshold).mean() <= f:
            best = max(best, float((members >= threshold).mean()))
    return best


def interval(value: float | None, width: float) -> dict:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": max(0, value - width), "high": min(1, value + width)}


def summarize(members: np.ndarray, nonmembers: np.ndarray) -> dict:
    n, width = len(nonmembers), 0.7 / np.sqrt(len(nonmembers))
    tpr = {}
    for f in (0.05, 0.01, 0.001):
        refused = f * n < 10
        value = None if refused else conservative_tpr(members, nonmembers, f)
        tpr[str(f)] = {
            "conservative": interval(value, 2 * width),
            "interpolated": interval(value and min(1, value + 0.004), 2 * width),
            "refused": refused,
        }
    auc = pairwise_auc(members, nonmembers)
    return {
        "auc": interval(auc, width),
        "tpr": tpr,
        "n_members": len(members),
        "n_nonmembers": n,
        "n_missing": 0,
    }


def synthesise_run(
    directory: Path,
    *,
    n: int = 400,
    combinations: tuple[str, ...] = ("gpt2 on news",),
    labeled: bool = True,
    calibrated: bool = False,
    blind_shift: float = 0.1,
    title: str = "Was the newsroom archive used to fine-tune gpt2-news?",
    seed: int = 0,
) -> Path:
    """Write `summary.json` and `scores.jsonl`; returns the directory."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    rows, described, p_values = [], [], []
    for index, name in enumerate(combinations):
        strength = 1 - 0.12 * index
        labels = np.repeat([1, 0], n)
        common = rng.normal(size=2 * n)
        scores = {
            attack: labels * shift * strength
            + 0.6 * common
            + 0.8 * rng.normal(size=2 * n)
            for attack, shift in SHIFTS.items()
        }
        scores["loss"] = -3.4 + 0.35 * scores["loss"]
        blind = labels * blind_shift + rng.normal(size=2 * n)
        shuffled = rng.permutation(labels)
        reference = np.sort(0.6 * rng.normal(size=n) + 0.8 * rng.normal(size=n))
        p = (1 + n - np.searchsorted(reference, scores["lt_mia"])) / (n + 1)
        p_values += p.tolist()
        for row in range(2 * n):
            flags = ["truncated"] if rng.random() < 0.3 else []
            flags += ["duplicate"] if rng.random() < 0.02 else []
            rows.append(
                {
                    "id": f"{rng.integers(2**63):016x}",
                    "n_tokens": int(rng.integers(20, 129)),
                    "scores": {key: float(value[row]) for key, value in scores.items()},
                    "probability": float(1 / (1 + np.exp(-scores["lt_mia"][row]))),
                    "flags": flags,
                }
            )
            if len(combinations) > 1:
                rows[-1]["combination"] = name
            if labeled:
                rows[-1]["label"] = int(labels[row])
            if calibrated:
                rows[-1]["p_value"] = float(p[row])
        members = {key: value[labels == 1] for key, value in scores.items()}
        others = {key: value[labels == 0] for key, value in scores.items()}
        gap = float(members["loss"].mean() - others["loss"].mean())
        lead = scores["lt_mia"]
        controls = {
            "blind": summarize(blind[labels == 1], blind[labels == 0]),
            "permutation": summarize(lead[shuffled == 1], lead[shuffled == 0]),
        }
        described.append(
            {
                "name": name,
                "target": f"runs/{name.split()[0]}-news",
                "reference": name.split()[0],
                "corpus": name.split()[-1],
                "unseen": True if labeled else None,
                "counts": {
                    "texts": 2 * n,
                    "members": n if labeled else None,
                    "nonmembers": n if labeled else None,
                    "flagged": int(0.31 * 2 * n),
                },
                "loss_gap_nats": {"value": gap, "low": gap - 0.04, "high": gap + 0.04}
                if labeled
                else None,
                "attacks": {key: summarize(members[key], others[key]) for key in scores}
                if labeled
                else {},
                "controls": controls if labeled else {},
            }
        )
    halves = rng.normal(size=(2, n))
    held_out = (1 + (halves[1][None] >= halves[0][:, None]).sum(1)) / (n + 1)
    summary = {
        "kind": "evaluate" if labeled else "audit",
        "title": title,
        "verdict": [
            "The target remembers its fine-tuning data: the learned attack tells "
            "members from non-members far better than chance."
            if labeled
            else "These texts were very likely part of the fine-tuning data.",
            "The margin over a classifier that never saw the model is large, and "
            "shuffled labels give chance.",
        ],
        "primary": "lt_mia",
        "combinations": described,
        "dataset": {
            "p_value": 3.2e-7,
            "decision": "member",
            "alpha": 0.05,
            "n_suspect": 2 * n,
            "n_nonmembers": n,
            "method": "one-sided Welch test on held-out halves, 10 splits",
            "effect": {"value": 0.71, "low": 0.48, "high": 0.94},
        }
        if calibrated
        else None,
        "calibration": {
            "primary": "lt_mia",
            "n_calibration": n,
            "p_values": p_values,
            "nonmember_p_values": held_out.tolist(),
            "ks_p": 0.41,
        }
        if calibrated
        else None,
        "fingerprints": {"texts": "9f" * 32, "target": "ab" * 32},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "lt_mia_jax": "0.1.0"},
        "config": {"seed": 0, "length": 128, "extract": {"k": 20, "batch_size": 16}},
        "command": "lt-mia audit --reference gpt2 --target runs/gpt2-news "
        "--texts texts.jsonl --nonmembers public.jsonl --out audit",
        "notes": ["Texts were cut to 128 tokens, as in the training of the attack."],
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "scores.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    return directory
