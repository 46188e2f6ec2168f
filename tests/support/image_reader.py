"""A small vision-language model that reads numbers, trained on drawn images.

It is what transformers calls Idefics3, the architecture of SmolVLM: a SigLIP-like encoder of
32 x 32 pixels, 16 image tokens, a Llama-like decoder, one table for tokens and head. Asked one of
:data:`PROMPTS` about an image of :func:`draw`, it answers with the number in it::

    checkpoint = trained_reader()  # a directory as transformers saves it; about two minutes, once
    export_model(str(checkpoint), bundle)
    image, number = examples(1)[0]
    answer_about_images(session, tokenizer, [image], PROMPTS[0], max_new_tokens=NEW_TOKENS)

or, as commands: ``edgetie export CHECKPOINT --output reader`` and ``edgetie generate reader --image
number.png --prompt "Read the number."``.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgetie.downloads import cache_directory

PROMPTS = ("Read the number.", "Which number is this?", "What does the image say?")
NEW_TOKENS = 3
"""Two digits and the token that ends an answer."""

SIDE = 64  # of a drawn image
_INPUT = 32  # pixels of a side that the encoder reads
_PATCH, _SHUFFLE = 4, 2  # pixels of a patch, and patches of an image token, on a side
_IMAGE_TOKENS = (_INPUT // _PATCH // _SHUFFLE) ** 2
_WIDTH = 64
_STEPS, _BATCH, _RATE = 1200, 64, 2.5e-3
_EASY = 0.9  # a loss below which numbers may lie in more places

PAD, START, END, IMAGE, AROUND, GLOBAL = (
    "<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>",
    "<global-img>",
)  # fmt: skip
_TEMPLATE = f"""{START}{{% for message in messages -%}}
{{{{ message['role'] | capitalize }}}}:
{{%- if message['content'] is string %}} {{{{ message['content'] }}}}
{{%- else %}}{{% for part in message['content'] -%}}
{{%- if part['type'] == 'image' %}}{IMAGE}{{% else %}}{{{{ part['text'] }}}}{{% endif -%}}
{{%- endfor %}}{{% endif %}}{END}
{{% endfor %}}{{% if add_generation_prompt %}}Assistant:{{% endif %}}"""


def draw(number: str, random: np.random.Generator, variety: float = 1.0) -> Image.Image:
    """Draw a bright number on a dark ground, in noise.

    Args:
        number: its digits.
        random: chooses place, size and colours.
        variety: how far the place is from the middle, and the size from the mean: 0 to 1.
    """
    dark, bright = random.integers(0, 90, 3), random.integers(150, 256, 3)
    font = ImageFont.load_default(round(32 + variety * random.uniform(-4, 4)))
    left, top, right, bottom = font.getbbox(number)
    places = 0.5 + variety * (random.random(2) - 0.5)
    x, y = places * (SIDE - np.array([right - left, bottom - top]))
    image = Image.new("RGB", (SIDE, SIDE), tuple(dark.tolist()))
    ImageDraw.Draw(image).text((int(x - left), int(y - top)), number, tuple(bright.tolist()), font)
    noise = random.integers(-20, 21, (SIDE, SIDE, 3), np.int16)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def examples(count: int, seed: int = 1) -> list[tuple[Image.Image, str]]:
    """Draw images that were not trained on, with their numbers."""
    random = np.random.default_rng([seed])
    numbers = [str(random.integers(10, 100)) for _ in range(count)]
    return [(draw(number, random), number) for number in numbers]


def trained_reader() -> Path:
    """Train the model, or return the directory in which an earlier process saved it."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    target = cache_directory() / "trained" / f"reader-{version}-{transformers.__version__}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            scratch = target.with_suffix(".part")
            shutil.rmtree(scratch, ignore_errors=True)
            processor, threads = make_processor(), torch.get_num_threads()
            torch.set_num_threads(1)  # several would wait for each other beside other tests
            train(processor.tokenizer).save_pretrained(scratch)
            torch.set_num_threads(threads)
            processor.save_pretrained(scratch)
            scratch.rename(target)
    return target


def make_processor() -> Any:
    """Make the processor: bytes and the words of the prompts as tokens, images in one tile."""
    special = [PAD, START, END, IMAGE, AROUND, GLOBAL]
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([*PROMPTS, "User:", "Assistant:"] * 2, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token=START, eos_token=END, pad_token=PAD
    )
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": _INPUT}, max_image_size={"longest_edge": _INPUT},
        do_image_splitting=False,
    )  # fmt: skip
    return transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=_IMAGE_TOKENS, chat_template=_TEMPLATE
    )


def chat(processor: Any, image: Image.Image, prompt: str) -> Any:
    """Make the model's inputs for a question, as transformers does."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=text, images=[image], return_tensors="pt")


def ask(model: Any, processor: Any, image: Image.Image, prompt: str) -> str:
    """Answer a question in torch."""
    inputs = chat(processor, image, prompt)
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    answer = tokens[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True))


def train(tokenizer: Any) -> Any:
    """Train the model on numbers of two digits, from easy places to all of them."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = _untrained(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _RATE, total_steps=_STEPS, pct_start=0.1
    )
    processor = make_processor()
    starts = [chat(processor, examples(1)[0][0], prompt)["input_ids"][0] for prompt in PROMPTS]
    variety = 0.0
    for step in range(_STEPS):
        numbers = random.integers(10, 100, _BATCH).astype(str).tolist()
        pixels = _pixels([draw(number, random, variety) for number in numbers])
        answers = torch.tensor([tokenizer.encode(number + END) for number in numbers])
        start = starts[step % len(starts)].expand(_BATCH, -1)
        ids = torch.cat([start, answers], 1)
        labels = torch.cat([torch.full_like(start, -100), answers], 1)
        optimizer.zero_grad()
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        variety = min(1.0, variety + 0.005 * (loss.item() < _EASY))
    return model.eval()


def _untrained(tokenizer: Any) -> Any:
    sizes = {
        "hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": 4,
    }  # fmt: skip
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = transformers.Idefics3Config(
        vision_config={**sizes, "num_hidden_layers": 3, "image_size": _INPUT, "patch_size": _PATCH},
        text_config={
            "model_type": "llama", **sizes, **ids, "num_hidden_layers": 2, "head_dim": 16,
            "num_key_value_heads": 2, "max_position_embeddings": 256,
            "vocab_size": len(tokenizer), "tie_word_embeddings": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=_SHUFFLE,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = transformers.AutoModelForImageTextToText.from_config(config).float()
    with torch.no_grad():  # larger than transformers' weights, which suit wider layers
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model.train()


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Compute what the processor makes of images: ``(batch, 1, 3, height, width)``."""
    size = (_INPUT, _INPUT)
    arrays = np.stack([image.resize(size, Image.Resampling.LANCZOS) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)[:, None] / 127.5 - 1
