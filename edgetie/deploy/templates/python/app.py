"""Converse with the model: python app.py "What is the capital of France?" """

import argparse
import sys
from collections.abc import Iterator

from images import ImageError
from model import Model


def main() -> None:
    parser = argparse.ArgumentParser(description="Converse with the model. Ctrl-C ends an answer.")
    parser.add_argument(
        "prompts", nargs="*", help="one for each turn; without any, each line typed is a turn"
    )
    parser.add_argument("--image", metavar="FILE", help="what the first prompt is about")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, help="0: always the most likely token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop-string", action="append", dest="stop_strings", metavar="TEXT")
    options = {
        name: value for name, value in vars(parser.parse_args()).items() if value is not None
    }
    try:
        model = Model()
        image, prompts = options.pop("image", None), options.pop("prompts")
        if image and model.needs_image:
            prompts = prompts or [""]
        for prompt in prompts or read_prompts():
            try:
                for text in model.answer(prompt, image=image, **options):
                    print(text, end="", flush=True)
            except KeyboardInterrupt:
                pass  # ends the answer, not the program
            image = None
            print()
    except ImageError as error:
        print(f"app: {error}", file=sys.stderr)
        sys.exit(2)
    except ValueError as error:
        sys.exit(f"app: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"app: run by {model.provider}", file=sys.stderr)


def read_prompts() -> Iterator[str]:
    """Yield lines of the standard input that are not empty."""
    while True:
        try:
            if line := input("> " if sys.stdin.isatty() else "").strip():
                yield line
        except EOFError:
            return


if __name__ == "__main__":
    main()
