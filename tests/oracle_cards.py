"""Unlearning cards with chosen numbers, for the tests of the report."""

import json
from pathlib import Path

import numpy as np


def interval(value, width=0.02):
    return {"value": value, "low": value - width, "high": value + width}


def card(
    *, utility=0.6, log_quality=-2.0, leak=0.0, known=0.3, width=5.0, note="", n=90
):
    """A card as `report_card` would make it, with one attack."""
    return {
        "n_forget": n,
        "n_holdout": n,
        "forget_probability": interval(known),
        "forget_rouge": interval(known),
        "forget_knowledge_left": interval((known - 0.3) / (0.95 - 0.3)),
        "forget_extraction_strength": interval(known),
        "retain_probability": interval(0.9),
        "model_utility": interval(utility),
        "utility_parts": {"retain/probability": interval(0.9)},
        "forget_quality": {
            "value": 10**log_quality,
            "log10": log_quality,
            "distance": 0.25,
            "n": [n, n],
            "log10_floor": -53.0,
            "note": note,
        },
        "priv_leak": interval(leak, width),
        "auc_loss": interval(0.5 - leak / 250),
        "tpr_loss": {"rate": 0.01, "refused": True, "n_holdout": n},
        "leak_loss": {"value": leak, "low": None, "high": None},
        "loss_gap_nats": interval(0.1),
        "told_from_retrained": {
            **interval(0.4),
            "epsilon": 0.7,
            "threshold": 0.2,
            "fpr": 0.1,
            "fnr": 0.3,
        },
        "completeness": interval(0.8),
        "completeness_gap": {
            "p05": interval(-1.0),
            "p50": interval(0.0),
            "p95": interval(1.0),
        },
    }


def document(method="npo", *, after=None, forget="f" * 64, questions=6, layers=3):
    """A whole `card.json`; `after` is passed to `card`."""
    rng = np.random.default_rng(questions)
    models = {
        "before": card(utility=0.62, log_quality=-30.0, leak=-99.0, known=0.95),
        "after": card(**(after or {})),
        "retrained": card(utility=0.61, log_quality=0.0, known=0.3),
    }
    said = {
        name: [
            {
                "answer": f"{name} says {i}",
                "probability": round(float(rng.random()), 4),
                "rouge": 0.5,
                "extraction": None,
            }
            for i in range(questions)
        ]
        for name in models
    }
    scores = {
        name: {
            "forget": {"loss": list(rng.normal(1, 1, 40)), "min_k": [1.0, 2.0, 3.0]},
            "holdout": {"loss": list(rng.normal(0, 1, 40)), "min_k": [0.5, 2.5]},
        }
        for name in models
    }
    return {
        "kind": "unlearning",
        "title": f"{method} on full",
        "method": method,
        "settings": {"beta": 0.1},
        "forget": forget,
        "models": models,
        "examples": [
            {
                "id": f"q{i}",
                "topic": ("city", "pet")[i % 2],
                "question": f"question {i} ?",
                "answer": f"answer {i}",
                "said": {name: rows[i] for name, rows in said.items()},
            }
            for i in range(questions)
        ],
        "scores": scores,
        "layers": {
            "forget": {
                "tokens": 50,
                "models": {
                    "before": [1.0] * layers,
                    "after": [1.0 - 0.1 * i for i in range(layers)],
                },
            }
        },
        "map": {
            "forget": {
                name: [[0.0, float(i)], [1.0, 2.0]] for i, name in enumerate(models)
            }
        },
        "rounded": [
            {
                "bits": 4,
                "changed_codes": 0.1,
                "recovered": interval(0.8),
                "models": {"after": card(n=6), "retrained": card(n=6)},
            }
        ],
        "relearning": {
            "steps": [0, 1, 5],
            "models": {"after": [0.1, 0.2, 0.6], "retrained": [0.1, 0.1, 0.2]},
            "taught": 3,
            "asked": 3,
            "area": interval(0.2),
            "robustness": interval(0.2),
        },
        "notes": ["Something was not measured."],
        "about": {"model": "models/full", "forget": {"file": "data/forget10.jsonl"}},
        "config": {"holdout": None},
        "versions": {"lt_mia_jax": "0"},
        "command": "lt-mia unlearn",
    }


def write(directory: Path, content) -> Path:
    directory.mkdir(parents=True)
    (directory / "card.json").write_text(json.dumps(content))
    return directory
