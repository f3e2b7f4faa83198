#!/usr/bin/env python3
"""Trains tiny-neox, the small GPT-NeoX model that the decoder example runs by default.

Reads every DATA_DIR/*.txt (Latin-1 books), trains a byte-level BPE tokenizer and a 4.2 M-parameter
model of the Pythia layout on them, and writes OUT_DIR in the Hugging Face format, with the held-out
text beside it. Needs torch with a CUDA GPU, tokenizers and transformers.

    train_tiny.py DATA_DIR OUT_DIR
"""

import argparse
import math
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

SEED = 7
HELD_OUT = 0.04  # the end of each book, never trained on
VERSE = ("milton", "shakespeare", "whitman", "blake")  # books whose line breaks mean something

VOCAB_SIZE = 2048  # rows of the embedding
SPACE_RUNS = range(24, 1, -1)  # added tokens, as in the GPT-NeoX tokenizer
END_OF_TEXT, PADDING = 0, 1

CONTEXT = 2048
BATCH_SIZE = 12
PEAK_LEARNING_RATE = 1.5e-3
FINAL_LEARNING_RATE = 0.03  # as a fraction of the peak
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.4
EVALUATE_EVERY = 100

PROMPT = "It was a bright morning in the spring, and"


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path, help="folder of .txt books")
    parser.add_argument("out_dir", type=Path, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=1800, help="at most this many (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=240, help="at most this long (%(default)s)"
    )
    return parser.parse_args()


def read_book(path):
    """The text of a book; prose loses the line breaks within its paragraphs."""
    text = path.read_bytes().decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    if not path.name.startswith(VERSE):
        paragraphs = (
            re.sub(r"\s*\n\s*", " ", paragraph.strip())
            for paragraph in re.split(r"\n\s*\n", text)
        )
        text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return text.strip() + "\n"


def read_books(data_dir):
    """Training texts and held-out texts, one of each per book, in the order of the file names."""
    train, held_out = [], []
    for path in sorted(data_dir.glob("*.txt")):
        text = read_book(path)
        cut = int(len(text) * (1 - HELD_OUT))
        train.append(text[:cut])
        held_out.append(text[cut:])
    if not train:
        raise SystemExit(f"{data_dir}: expected .txt files, found none")
    return train, held_out


def train_tokenizer(texts):
    """A tokenizer that differs from GPT-NeoX's in its vocabulary only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "trim_offsets": True}
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**byte_level)
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # Three rows of the embedding stay unused: like Pythia's, it is larger than the vocabulary,
        # and a sampler must never choose the padding.
        vocab_size=VOCAB_SIZE - len(SPACE_RUNS) - 3,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in SPACE_RUNS])
    return tokenizer


def encode(tokenizer, text):
    """Ids of a text, which begins where another one ended."""
    return [END_OF_TEXT] + tokenizer.encode(text).ids


def encode_all(tokenizer, texts):
    """The texts one after another, as one vector on the GPU."""
    ids = [i for text in texts for i in encode(tokenizer, text)]
    return torch.tensor(ids, dtype=torch.long, device="cuda")


def make_model():
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_act="gelu",
        rotary_pct=0.25,
        rotary_emb_base=10000,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=True,
        layer_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        # So small a text is read many times over: strong dropout and weight decay hold it off.
        attention_dropout=0.1,
        hidden_dropout=0.2,
    )
    return GPTNeoXForCausalLM(config).cuda()


def make_optimizer(model):
    """AdamW; biases and LayerNorm parameters do not decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def learning_rate(step, progress):
    """Linear warm-up, then a cosine from the peak down to its final fraction."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    decay = cosine * (1 - FINAL_LEARNING_RATE) + FINAL_LEARNING_RATE
    return PEAK_LEARNING_RATE * min(1, step / WARMUP_STEPS) * decay


@torch.no_grad()
def perplexity(model, ids):
    """Over consecutive windows that each predict CONTEXT tokens."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(ids) - CONTEXT - 1, CONTEXT):
        window = ids[start : start + CONTEXT + 1]
        logits = model(window[None, :-1]).logits.float()
        total += F.cross_entropy(logits[0], window[1:], reduction="sum").item()
        count += CONTEXT
    model.train(was_training)
    return math.exp(total / count)


def random_batch(ids):
    starts = torch.randint(0, len(ids) - CONTEXT - 1, (BATCH_SIZE,)).tolist()
    return torch.stack([ids[start : start + CONTEXT + 1] for start in starts])


def train(model, train_ids, held_out_ids, max_steps, max_seconds):
    """Trains until either limit; leaves the model in the state of its best evaluation."""
    optimizer = make_optimizer(model)
    best_perplexity, best_state = math.inf, None
    start = time.time()
    model.train()
    for step in range(max_steps):
        # The schedule follows whichever limit is nearer, so that a slow GPU still ends it.
        progress = max(step / max_steps, (time.time() - start) / max_seconds)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)

        batch = random_batch(train_ids)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.float().view(-1, VOCAB_SIZE), batch[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        if step % EVALUATE_EVERY == 0 or step == max_steps - 1:
            current = perplexity(model, held_out_ids)
            elapsed = time.time() - start
            print(
                f"step {step}: loss {loss.item():.3f}, "
                f"held-out perplexity {current:.2f}, {elapsed:.0f} s",
                flush=True,
            )
            if current < best_perplexity:
                best_perplexity = current
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_state)
    model.eval()


def print_samples(model, tokenizer):
    ids = torch.tensor([encode(tokenizer, PROMPT)], device="cuda")
    sampled = model.generate(
        ids,
        max_new_tokens=120,
        do_sample=True,
        temperature=0.8,
        top_k=40,
        pad_token_id=PADDING,
    )
    greedy = model.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=PADDING)
    print("sampled:", tokenizer.decode(sampled[0].tolist()))
    print("greedy:", tokenizer.decode(greedy[0].tolist()))


def main():
    arguments = parse_arguments()
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)

    train_texts, held_out_texts = read_books(arguments.data_dir)
    tokenizer = train_tokenizer(train_texts)
    tokenizer.save(str(arguments.out_dir / "tokenizer.json"))
    train_ids = encode_all(tokenizer, train_texts)
    held_out_ids = encode_all(tokenizer, held_out_texts)
    print(
        f"vocabulary {tokenizer.get_vocab_size()} of {VOCAB_SIZE}, "
        f"{len(train_ids)} tokens to train on, {len(held_out_ids)} held out"
    )

    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    train(model, train_ids, held_out_ids, arguments.steps, arguments.seconds)
    print(f"best held-out perplexity: {perplexity(model, held_out_ids):.3f} (fp32 weights)")

    model.half().save_pretrained(arguments.out_dir)
    model.float()  # the values are fp16's from here on, the arithmetic fp32's
    print(f"as saved: {perplexity(model, held_out_ids):.3f} (fp16 weights)")
    # Written without newline translation: the perplexity tests read these very bytes.
    (arguments.out_dir / "heldout.txt").write_bytes("\n".join(held_out_texts).encode())
    print_samples(model, tokenizer)


if __name__ == "__main__":
    main()
