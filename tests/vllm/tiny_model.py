"""Models small enough to be made on the spot: a Llama of two layers with random weights, and a tokenizer of its own.

Two tokenizers, because they behave differently. With the byte-level one a character may take several tokens, a token may be half
a character, and a text has other tokens than those it was made of. With the character one nothing of that happens.
"""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
TEXT = "Grüße aus dem Leuchtturm, naïve 🌊 und 漢字 inbegriffen: the sea says hello to every friend of mine, 0123456789. "
WINDOW = 2_048
"""Tokens of the context window."""


def byte_level() -> Tokenizer:
    """Return a tokenizer of bytes, and of some sequences of them that are words or parts of words.

    Few bytes, so that some of what a random model strings together are characters of several tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    [(spelled, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("ehlorstuy ,.üß🌊漢")
    alphabet = sorted(set(spelled))
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + len(alphabet) + 12, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the other true story, hers or yours. "] * 4, trainer)
    return tokenizer


def character() -> Tokenizer:
    """Return a tokenizer of characters."""
    characters = sorted({*TEXT, *map(chr, range(32, 127)), *"äöüßéèçñøåαβγδжщ你好世界🙂🚀"})
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def make(folder: Path, tokenizer: Tokenizer, *, template: str = TEMPLATE, seed: int = 51) -> Path:
    """Write a model with this tokenizer into `folder`; the same seed makes the same model."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[3:]
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # heads of 32: the CPU has no smaller ones
        num_key_value_heads=1,
        max_position_embeddings=WINDOW,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=False,
        initializer_range=0.4,  # with the usual 0.02 it says one token for ever
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[fast.eos_token_id] *= 0.7  # or most replies would end after a few words
    model.save_pretrained(folder)
    return folder
