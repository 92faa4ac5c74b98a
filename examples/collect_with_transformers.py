"""Statistics of texts for `lt-mia audit`, by PyTorch and transformers alone.

For a machine that serves or trains models and has no JAX; `lt-mia collect` writes the
same file. Run it for the model under audit and for the model before fine-tuning:

    python examples/collect_with_transformers.py --model my-model \
        --texts texts.jsonl nonmembers.jsonl --out target.jsonl
"""

import argparse
import hashlib
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def text_id(text):
    """The id of a text that has none, as lt-mia makes it."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def tokenize(tokenizer, text, length):
    """Token ids, which of them are scored, and the part of the text that they are.

    Texts are cut to `length` tokens, the end-of-text token included, and a
    beginning-of-text token where the tokenizer adds one (`--bos auto` of lt-mia).
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    both = (
        tokenizer("a")["input_ids"],
        tokenizer("a", add_special_tokens=False)["input_ids"],
    )
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    begin = [bos] if bos is not None and both[0][0] == bos != both[1][0] and ids else []
    end = [] if eos is None else [eos]
    kept = ids[: length - len(begin) - len(end)]
    truncated = len(kept) < len(ids)
    options = {"clean_up_tokenization_spaces": False}
    part = tokenizer.decode(kept, **options) if truncated else text
    scored = [0] * len(begin) + [1] * len(kept + end)
    return begin + kept + end, scored, part, truncated


@torch.no_grad()
def statistics(model, ids):
    """Log-probabilities and ranks of the tokens from the second one on."""
    if len(ids) < 2:
        return [], []
    tokens = torch.tensor([ids], device=model.device)
    logits = model(tokens).logits[0, :-1].float()
    true = tokens[0, 1:, None]
    log_probs = logits.log_softmax(-1).gather(1, true)[:, 0]
    ranks = 1 + (logits > logits.gather(1, true)).sum(1)
    return log_probs.tolist(), ranks.tolist()


def main(arguments=None):
    """Write one row a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True, nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    model = model.to(given.device).eval()
    known = set()
    with open(given.out, "w", encoding="utf-8") as out:
        for path in given.texts:
            for line in filter(str.strip, open(path, encoding="utf-8")):
                row = json.loads(line)
                name = row.get("id")
                name = text_id(row["text"]) if name is None else str(name)
                if name in known:
                    continue
                known.add(name)
                ids, scored, part, truncated = tokenize(
                    tokenizer, row["text"], given.length
                )
                log_probs, ranks = statistics(model, ids)
                found = {
                    "id": name,
                    "token_ids": ids,
                    "log_probs": log_probs,
                    "ranks": ranks,
                    # These are optional.
                    "scored": scored,
                    "text": part,
                    "truncated": truncated,
                    "vocab_size": model.config.vocab_size,
                    "model": given.model,
                }
                out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
