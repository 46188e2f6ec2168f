"""``edgetie generate``: stream text from a bundle."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import signal
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from edgetie.errors import BundleError

from .common import Number, output_options, print_json, provider_option, threads_option
from .constraints import constraint_options, make_constraint, require_complete

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edgetie.bundle.bundle import Bundle
    from edgetie.runtime.decoding.prompt_cache import PromptCache
    from edgetie.runtime.decoding.text_generation import Chunk, Completion
    from edgetie.runtime.session import Session
    from edgetie.runtime.text.tokenizer import Tokenizer

_NEW_TOKENS = 128
HELP = """Stream text from a bundle.

The prompt becomes a chat message if the model has a chat template, and is continued as it is
otherwise. Without a prompt, on a terminal, a chat model holds a conversation. A speech model
transcribes --audio, and a vision-language model answers about --image.

\b
Examples:
  edgetie generate int8
  edgetie generate int8 --prompt "What is a tied embedding?"
  edgetie generate int8 --prompt "Once upon a time" --no-chat --temperature 0.8 --seed 1
  edgetie generate int8 --prompt "Red or blue?" --prompt "Tea or coffee?" --json
  edgetie generate int8 --prompt "Name a city and its country." --json-schema city.json
  edgetie generate int8 --prompt "Is the sea salty?" --choices yes,no
  edgetie generate int8 --system "$(cat manual.txt)" --prompt "Reset?" --prompt-cache manual.cache
  cat question.txt | edgetie generate int8 --prompt -
  edgetie generate whisper-int8 --audio clip.wav
  edgetie generate smolvlm-int8 --image photo.jpg --prompt "What is this?"
"""


@click.command(help=HELP)
@click.argument("bundle", metavar="BUNDLE", type=click.Path())
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Text to answer or continue; - reads stdin; give several to run them as one batch, "
    "in which all have the room of the longest.",
)
@click.option(
    "--audio",
    multiple=True,
    type=click.Path(),
    help="WAV file to transcribe: 16 bits, mono, at the model's rate (16 kHz); repeat for more.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(),
    help="Image file that --prompt asks about; repeat for more. A model that only reads images "
    "needs no --prompt.",
)
@click.option(
    "--language", help="Language of --audio by its code, such as en  [default: as detected]."
)
@click.option("--system", help="System message, before the prompt.")
@click.option("--no-chat", is_flag=True, help="Continue the prompt as it is: no chat template.")
@click.option(
    "--prompt-cache",
    type=click.Path(),
    help="File with the beginning of the prompt as the model has read it: written if it is not "
    "there, so that later prompts with this beginning are read faster.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Most tokens to generate  [default: 128; for --audio as many as a speech model allows, "
    "448 of a language model].",
)
@click.option(
    "--temperature",
    type=Number(min=0),
    default=0.0,
    show_default=True,
    help="0 always selects the most likely token; 1 samples as the model learned.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Sample among the K most likely tokens.")
@click.option(
    "--top-p",
    type=Number(min=0, max=1, min_open=True),
    help="Sample among the most likely tokens that together reach this probability.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Make sampling repeatable.")
@click.option(
    "--stop",
    "stop_strings",
    multiple=True,
    help="Text that ends the answer and is left out of it; repeat for more.",
)
@click.option(
    "--speculate/--no-speculate",
    default=None,
    help="Propose tokens from the text so far and verify several in one run; they stay the same  "
    "[default: for one prompt, with edgetie's own provider].",
)
@constraint_options
@click.option("--adapter", metavar="NAME", help="LoRA adapter of the bundle to generate with.")
@provider_option
@threads_option
@output_options
def command(
    bundle: str,
    prompts: tuple[str, ...],
    audio: tuple[str, ...],
    images: tuple[str, ...],
    language: str | None,
    system: str | None,
    no_chat: bool,
    prompt_cache: str | None,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop_strings: tuple[str, ...],
    speculate: bool | None,
    json_schema: str | None,
    grammar: str | None,
    choices: str | None,
    adapter: str | None,
    provider: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise click.UsageError("--top-k and --top-p need a --temperature above 0")
    if prompts.count("-") > 1:
        raise click.UsageError("--prompt - can be given once only")
    talks = not (prompts or audio or images or no_chat or as_json) and _is_terminal()
    if prompt_cache is not None and (audio or images or len(prompts) > 1):
        raise click.UsageError("--prompt-cache goes with one --prompt, or with a conversation")
    if images and (audio or len(prompts) > 1):
        raise click.UsageError("--image goes with one --prompt, and without --audio")
    if bool(prompts) == bool(audio) and not talks and not images:
        raise click.UsageError("give --prompt, or --audio to a speech model")
    if audio and (system is not None or no_chat):
        raise click.UsageError("--system and --no-chat go with --prompt")
    if audio and (stop_strings or json_schema or grammar or choices):
        raise click.UsageError("--stop, --json-schema, --grammar and --choices go with --prompt")
    if speculate and len(prompts) > 1:
        raise click.UsageError("--speculate goes with one --prompt")
    if not audio and language is not None:
        raise click.UsageError("--language goes with --audio")
    from edgetie.bundle.bundle import open_bundle
    from edgetie.providers.placement import describe_placement
    from edgetie.runtime.decoding.prompt_cache import PromptCache
    from edgetie.runtime.decoding.sampling import Sampling
    from edgetie.runtime.session import open_session
    from edgetie.runtime.text.tokenizer import Tokenizer

    opened = open_bundle(bundle)
    cache = None if prompt_cache is None else PromptCache(prompt_cache)
    tokenizer = Tokenizer.from_bundle(opened)
    options: dict[str, Any] = {"sampling": Sampling(temperature, top_k, top_p), "seed": seed}
    constraint = make_constraint(tokenizer, json_schema, grammar, choices)
    limit = max_new_tokens or _NEW_TOKENS

    def open_adapted() -> Session:
        session = open_session(opened, provider=provider, threads=threads, speculate=speculate)
        session.use_adapter(adapter)
        return session

    if not audio:
        options |= {"constraint": constraint, "stop_strings": stop_strings, "max_new_tokens": limit}
    if talks:
        session = open_adapted()
        _converse(session, tokenizer, system, cache, options)
        return
    if audio:
        from edgetie.runtime.audio.features import FeatureExtractor, read_wav

        sample_rate = FeatureExtractor.from_bundle(opened).rate
        samples = [read_wav(path, sample_rate) for path in audio]
        session = open_adapted()
        options |= {"language": language, "max_new_tokens": max_new_tokens}
        chunks = _transcribe(session, tokenizer, samples, options)
    elif images:
        from edgetie.runtime.images.answers import answer_about_images

        session = open_adapted()
        options |= {"system": system, "chat": not no_chat}
        prompt = _read_prompts(prompts)[0] if prompts else None
        chunks = answer_about_images(session, tokenizer, images, prompt, **options)
    else:
        from edgetie.runtime.decoding.text_generation import generate_text

        ids = _encode_prompts(opened, tokenizer, prompts, system, not no_chat)
        session = open_adapted()
        chunks = generate_text(session, tokenizer, ids, prompt_cache=cache, **options)
    completions = _print_chunks(chunks, len(prompts) or len(audio) or 1, as_json)
    if as_json:
        reports = [asdict(completion) for completion in completions]
        nodes = {name: getattr(session, name) for name in ("provider", "nodes_per_provider")}
        print_json((reports[0] if len(reports) == 1 else {"completions": reports}) | nodes)
    for completion in () if as_json or quiet else completions:
        rate = completion.tokens_per_second
        speed = "" if rate is None else f", {rate:.1f} tokens/s"
        cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
        accepted, proposed = completion.accepted_tokens, completion.proposed_tokens
        share = f", {accepted} of {proposed} proposed tokens accepted" if proposed else ""
        click.echo(
            f"{completion.prompt_tokens} prompt tokens{cached}, {len(completion.tokens)} "
            f"generated{speed}{share} ({completion.stop_reason})",
            err=True,
        )
    if not as_json and not quiet:
        click.echo(
            f"run by {describe_placement(session.provider, session.nodes_per_provider)}", err=True
        )
    if constraint is not None:
        require_complete(completions, limit)


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _converse(
    session: Session,
    tokenizer: Tokenizer,
    system: str | None,
    cache: PromptCache | None,
    options: dict[str, Any],
) -> None:
    """Answer each line that is typed, until the end of the input."""
    from edgetie.runtime.decoding.conversation import Conversation

    with contextlib.suppress(ImportError):  # on Windows; it makes input() a line that is edited
        importlib.import_module("readline")
    conversation = Conversation(session, tokenizer, system=system, prompt_cache=cache)
    click.echo("Ctrl-C stops an answer, Ctrl-D ends the conversation.", err=True)
    while True:
        try:
            text = input("> ")
        except EOFError:
            click.echo()
            return
        if text.strip():
            completions = _print_answer(conversation.ask(text, **options))
            if options["constraint"] is not None:
                try:
                    require_complete(completions, options["max_new_tokens"])
                except click.ClickException as error:
                    click.echo(error.format_message(), err=True)


def _print_answer(chunks: Iterator[Chunk]) -> list[Completion]:
    """Print an answer until it ends or Ctrl-C stops it. Other signals end the program."""
    stopped: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: stopped.append(number))
    try:
        return _print_chunks(itertools.takewhile(lambda _: not stopped, chunks), 1, as_json=False)
    finally:
        signal.signal(signal.SIGINT, handler)


def _print_chunks(chunks: Iterator[Chunk], count: int, as_json: bool) -> list[Completion]:
    """Print a single text as it comes, several each as a whole; returns them in order."""
    completions: dict[int, Completion] = {}
    streaming = count == 1 and not as_json
    for chunk in chunks:
        if streaming:
            click.echo(chunk.text, nl=False)
        if chunk.completion is not None:
            completions[chunk.index] = chunk.completion
            if not streaming and not as_json:
                click.echo(f"[{chunk.index + 1}] {chunk.completion.text}")
    if streaming:
        click.echo()
    return [completions[index] for index in sorted(completions)]


def _transcribe(
    session: Session,
    tokenizer: Tokenizer,
    audio: list[NDArray[np.float32]],
    options: dict[str, Any],
) -> Iterator[Chunk]:
    """Transcribe one audio after the other, without the space that texts begin with."""
    from edgetie.runtime.audio.transcription import transcribe

    for index, samples in enumerate(audio):
        started = False
        for chunk in transcribe(session, tokenizer, samples, **options):
            text = chunk.text if started else chunk.text.lstrip()
            started = started or bool(text)
            completion = chunk.completion
            if completion is not None:
                completion = replace(completion, text=completion.text.lstrip())
            yield replace(chunk, index=index, text=text, completion=completion)


def _encode_prompts(
    bundle: Bundle, tokenizer: Tokenizer, prompts: tuple[str, ...], system: str | None, chat: bool
) -> list[list[int]]:
    """Tokenize prompts, as chats if the model has a chat template and ``chat`` allows it."""
    from edgetie.bundle.names import SPEECH

    if bundle.task == SPEECH:
        raise click.UsageError(f"{bundle.directory} is a speech model: give --audio, not --prompt")
    chat = chat and tokenizer.chat_template is not None
    if system is not None and not chat:
        raise click.UsageError("--system needs a model with a chat template, and no --no-chat")
    try:
        return [_encode(tokenizer, text, system, chat) for text in _read_prompts(prompts)]
    except BundleError as error:  # of the chat template
        raise BundleError(error.message, advice={"no_chat": True}) from error


def _read_prompts(prompts: tuple[str, ...]) -> list[str]:
    return [_read_stdin() if prompt == "-" else prompt for prompt in prompts]


def _read_stdin() -> str:
    if sys.stdin is None:
        raise click.UsageError("--prompt -: stdin is closed")
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--prompt -: stdin is not UTF-8 text ({error})") from error


def _encode(tokenizer: Tokenizer, text: str, system: str | None, chat: bool) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError(f"--prompt: not UTF-8 text ({error})") from error
    if not chat:
        return tokenizer.encode(text)
    messages = [] if system is None else [{"role": "system", "content": system}]
    prompt = tokenizer.chat_prompt([*messages, {"role": "user", "content": text}])
    return tokenizer.encode(prompt, add_special_tokens=False)
