import json
import sys

import jax
import numpy as np
import oracle_classifier as oracle
import pytest

from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.attacks.learned.storage import (
    load_attack,
    load_torch_attack,
    save_attack,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_manifest

CONFIG = classifier.ClassifierConfig(
    inputs=21, length=8, width=16, heads=2, layers=2, feed_forward=24, standardise=True
)


@pytest.fixture
def saved(tmp_path, key):
    params = classifier.init(CONFIG, key)
    save_attack(tmp_path / "attack", CONFIG, params, {"note": "é", "text_ids": ["a"]})
    return tmp_path / "attack", params


def test_round_trip(saved):
    directory, params = saved
    attack = load_attack(directory)
    assert attack.config == CONFIG
    assert attack.card["note"] == "é"
    assert attack.text_ids == {"a"}
    assert attack.k == 1
    jax.tree.map(np.testing.assert_array_equal, attack.params, params)


def test_k_needs_the_package_layout():
    config = classifier.ClassifierConfig(inputs=100)
    with pytest.raises(InputError, match="100 columns"):
        Attack(config, {}, {}).k  # noqa: B018


@pytest.mark.parametrize(
    "name", ["classifier.safetensors", "classifier.json", "card.json"]
)
@pytest.mark.parametrize("damage", ["remove", "truncate", "flip"])
def test_damaged_files_are_named(saved, name, damage):
    directory, _ = saved
    path = directory / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-3] if damage == "truncate" else content)
    with pytest.raises(InputError, match=name):
        load_attack(directory)


def test_unfinished_and_absent_attacks_are_refused(saved, tmp_path):
    directory, _ = saved
    (directory / "manifest.json").unlink()
    with pytest.raises(InputError, match="manifest"):
        load_attack(directory)
    with pytest.raises(InputError, match="no such"):
        load_attack(tmp_path / "nothing")


def test_weights_must_fit_the_configuration(saved, key):
    directory, params = saved
    other = {**params, "proj": {"kernel": params["proj"]["kernel"][:, :5]}}
    save_attack(directory, CONFIG, other, {})
    with pytest.raises(InputError) as caught:
        load_attack(directory)
    assert "proj/bias: found nothing, expected (16,)" in str(caught.value)
    assert "proj/kernel: found (21, 5), expected (21, 16)" in str(caught.value)


def test_weights_that_are_not_finite_are_refused(saved):
    directory, params = saved
    params["norm"]["scale"] = params["norm"]["scale"].at[0].set(np.nan)
    save_attack(directory, CONFIG, params, {})
    with pytest.raises(InputError, match="norm/scale"):
        load_attack(directory)


def test_unknown_configuration_keys_are_refused(saved):
    directory, _ = saved
    path = directory / "classifier.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "color": 1}))
    write_manifest(directory, ["classifier.json", "classifier.safetensors"])
    with pytest.raises(InputError, match="color"):
        load_attack(directory)


def _checkpoint(torch, path, **changes):
    state = oracle.random_state(
        np.random.default_rng(0), oracle.transformer_shapes(21, 16, 24, 2)
    )
    content = {
        "state_dict": {name: torch.from_numpy(value) for name, value in state.items()},
        "d_in": 21,
        "seq_len": 8,
        "architecture": "transformer",
        "mia_hparams": {"d_model": 16, "nhead": 4, "num_layers": 2, "dropout": 0.1},
        "config": {"seed": 42},
        "train_combinations": ["gpt2_xsum"],
        **changes,
    }
    torch.save(content, path)
    return state


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs the extra 'parity'")


@pytest.mark.parity
def test_torch_checkpoint_scores_like_the_oracle(torch, tmp_path):
    state = _checkpoint(torch, tmp_path / "a.pt")
    attack = load_attack(tmp_path / "a.pt")
    assert (attack.config.heads, attack.config.dropout) == (4, 0.1)
    assert (attack.config.length, attack.config.layers) == (8, 2)
    assert attack.card["train_combinations"] == ["gpt2_xsum"]
    rng = np.random.default_rng(1)
    features = rng.normal(size=(3, 8, 21)).astype(np.float32)
    mask = np.arange(8)[None] < np.array([7, 2, 5])[:, None]
    expected = oracle.transformer(state, features, mask, heads=4, layers=2)
    found = classifier.apply(attack.config, attack.params, features, mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    save_attack(tmp_path / "ours", attack.config, attack.params, attack.card)
    again = load_attack(tmp_path / "ours")
    np.testing.assert_array_equal(
        classifier.apply(again.config, again.params, features, mask), found
    )


class Planted:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parity
def test_code_in_a_checkpoint_is_not_run(torch, tmp_path):
    planted = Planted(tmp_path / "planted")
    _checkpoint(torch, tmp_path / "a.pt", config=planted)
    with pytest.raises(InputError, match="run code"):
        load_torch_attack(tmp_path / "a.pt")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parity
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_])
def test_numbers_of_numpy_are_read(torch, tmp_path, kind):
    """The original trainer stores the AUC as scikit-learn returned it."""
    _checkpoint(torch, tmp_path / "a.pt", best_auc=kind(1))
    content = (tmp_path / "a.pt").read_bytes()
    assert b"multiarray" in content  # not a plain number
    load_torch_attack(tmp_path / "a.pt")


@pytest.mark.parity
def test_broken_checkpoints_are_refused(torch, tmp_path):
    path = tmp_path / "a.pt"
    _checkpoint(torch, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_torch_attack(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="state_dict"):
        load_torch_attack(path)
    _checkpoint(torch, path, architecture="pooled_transformer")
    with pytest.raises(InputError, match=r"unused.*encoder"):
        load_torch_attack(path)
    with pytest.raises(InputError, match="no such file"):
        load_torch_attack(tmp_path / "none.pt")


NO_TENSORS = {
    "'proj.weight': str": lambda torch: "weights",
    "'proj.weight': list": lambda torch: [[1.0, 2.0]],
    "'proj.weight': NoneType": lambda torch: None,
    "'proj.weight': int": lambda torch: 7,
    "dense tensors of floating-point": lambda torch: torch.ones(16, 21).to_sparse(),
    "holds 'proj.weight': Tensor": lambda torch: torch.ones(16, 21, dtype=torch.int64),
    "settings or shapes of no attack": lambda torch: torch.ones(16, 21, 3),
}


@pytest.mark.parity
@pytest.mark.parametrize("words", NO_TENSORS)
def test_a_state_dict_holds_dense_tensors(torch, tmp_path, words):
    path = tmp_path / "a.pt"
    _checkpoint(torch, path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["proj.weight"] = NO_TENSORS[words](torch)
    torch.save(content, path)
    with pytest.raises(InputError, match=words):
        load_torch_attack(path)


@pytest.mark.parity
@pytest.mark.parametrize(
    "change",
    [
        {"mia_hparams": [1]},
        {"mia_hparams": {"nhead": "many"}},
        {"mia_hparams": {"nhead": 0}},
        {"mia_hparams": {"dropout": float("nan")}},
        {"seq_len": -1},
        {"seq_len": "long"},
        {"architecture": 7},
        {"train_combinations": 7},
    ],
)
def test_settings_of_a_checkpoint_are_checked(torch, tmp_path, change):
    _checkpoint(torch, tmp_path / "a.pt", **change)
    with pytest.raises(InputError, match=r"a\.pt: "):
        load_torch_attack(tmp_path / "a.pt")


def test_without_torch_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install 'lt-mia-jax"):
        load_attack(tmp_path / "a.pt")
