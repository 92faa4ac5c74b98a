"""Models whose embedding was resized."""

import json

import jax
import jax.numpy as jnp

from lt_mia_jax.checkpoints import load_pretrained, read_config, save_pretrained


def resized(source, folder, rows, token=None):
    """A model with more rows in its embedding, and perhaps a token more."""
    config, params, tokenizer = load_pretrained(source)
    old = params["embedding"]["tokens"]
    more = jax.random.normal(jax.random.key(5), (rows, old.shape[1]))
    config = json.loads((source / "config.json").read_text())
    folder.mkdir()
    config["vocab_size"] += rows
    (folder / "config.json").write_text(json.dumps(config))
    params["embedding"]["tokens"] = jnp.concatenate([old, more])
    if "kernel" in params.get("head", {}):
        wide = jnp.concatenate([params["head"]["kernel"], more.T], axis=1)
        params["head"]["kernel"] = wide
    if token is not None:
        tokenizer.add_special_tokens({"pad_token": token})
    save_pretrained(folder, read_config(config, "here"), params, tokenizer)
    return folder
