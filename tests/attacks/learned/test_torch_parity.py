"""Every architecture against modules built from torch's own layers."""

import itertools
import math

import jax
import numpy as np
import pytest

from lt_mia_jax.attacks.learned import classifier

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
pytestmark = pytest.mark.parity

B, T, C, D, FF, HEADS, LAYERS = 6, 16, 28, 24, 40, 4, 3


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _head():
    nn = torch.nn
    return nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Dropout(0.05), nn.Linear(D, 1))


def _mean(x, mask):
    count = mask.sum(1, keepdim=True).clamp(min=1)
    return (x * mask[..., None]).sum(1) / count


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.proj, self.norm = nn.Linear(C, D), nn.LayerNorm(D)
        layer = nn.TransformerEncoderLayer(D, HEADS, FF, 0.05, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.attn_pool = nn.Sequential(
            nn.Linear(D, D // 2), nn.Tanh(), nn.Linear(D // 2, 1)
        )
        self.cls = _head()

    def forward(self, x, mask):
        x = self.norm(self.proj(x))
        angle = torch.arange(T)[:, None] * torch.exp(
            -torch.arange(0, D, 2) * math.log(10000.0) / D
        )
        table = torch.zeros(T, D)
        table[:, 0::2], table[:, 1::2] = angle.sin(), angle.cos()
        x = self.encoder(x + table, src_key_padding_mask=~mask)
        score = self.attn_pool(x)[..., 0].masked_fill(~mask, -math.inf)
        return self.cls((score.softmax(1)[..., None] * x).sum(1))[:, 0]


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.proj, self.norm = nn.Linear(C, D), nn.LayerNorm(D)
        layers = []
        for _ in range(LAYERS):
            layers += [nn.Linear(D, FF), nn.ReLU(), nn.Dropout(0.05)]
            layers += [nn.Linear(FF, D), nn.LayerNorm(D)]
        self.layers, self.cls = nn.ModuleList(layers), _head()

    def forward(self, x, mask):
        x = self.norm(self.proj(_mean(x, mask)))
        for layer in self.layers:
            x = layer(x)
        return self.cls(x)[:, 0]


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(C * T, 1)

    def forward(self, x, mask):
        return self.linear(x.flatten(1))[:, 0]


class Mlp(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        nn = torch.nn
        self.flat = inputs == C * T
        layers, sizes = [], (inputs, 20, 10)
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.05)]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, x, mask):
        return self.mlp(x.flatten(1) if self.flat else _mean(x, mask))[:, 0]


MODULES = {
    "transformer": Transformer,
    "pooled_transformer": Pooled,
    "lr": Linear,
    "mlp": lambda: Mlp(C * T),
    "mean_mlp": lambda: Mlp(C),
}


def _batch():
    rng = np.random.default_rng(0)
    mask = np.arange(T)[None] < rng.integers(1, T, size=B)[:, None]
    features = rng.normal(size=(B, T, C)) * mask[..., None] * 2
    return features.astype(np.float32), mask


def _numpy_state(module):
    return {k: v.detach().numpy() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("architecture", MODULES)
def test_logits_and_gradients_agree(architecture):
    module = MODULES[architecture]().train()
    for part in module.modules():  # gradients with dropout off, not the fast path
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if isinstance(part, torch.nn.MultiheadAttention):
            part.dropout = 0.0
    features, mask = _batch()
    logits = module(torch.from_numpy(features), torch.from_numpy(mask))
    (logits**2).sum().backward()
    config, params = classifier.from_torch_state(
        _numpy_state(module), heads=HEADS, length=T
    )
    assert config.architecture == architecture

    def total(params):
        ours = classifier.apply(config, params, features, mask)
        return (ours**2).sum(), ours

    gradients, ours = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(ours, logits.detach().numpy(), atol=1e-5)
    expected = {name: p.grad.numpy() for name, p in module.named_parameters()}
    _, expected = classifier.from_torch_state(expected, heads=HEADS, length=T)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        gradients,
        expected,
    )


def test_evaluation_mode_agrees_too():
    module = Transformer().eval()
    features, mask = _batch()
    with torch.no_grad():
        expected = module(torch.from_numpy(features), torch.from_numpy(mask)).numpy()
    config, params = classifier.from_torch_state(_numpy_state(module), heads=HEADS)
    found = classifier.apply(config, params, features, mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", MODULES)
def test_initial_values_have_the_same_spread(architecture, key):
    module = MODULES[architecture]()
    config, theirs = classifier.from_torch_state(
        _numpy_state(module), heads=HEADS, length=T
    )
    ours = classifier.init(config, key)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        if b.size >= 400:
            np.testing.assert_allclose(np.std(a), np.std(b), rtol=0.1)
        if b.size > 1 and np.ptp(b) == 0:  # zeros and ones
            np.testing.assert_array_equal(a, b)
