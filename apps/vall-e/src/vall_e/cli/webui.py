"""`vall-e-webui`: a page in the browser that speaks, on this machine alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vall_e.cli.speaker import load_speaker, speaker_arguments
from vall_e.cli.synthesize import OPTIONS

if TYPE_CHECKING:
    import gradio
    import numpy as np

    from vall_e.synthesis import Speaker


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vall-e-webui",
        description="Speak texts from a page in the browser. It is served to this machine alone.",
        epilog="example:\n  vall-e-webui --model training/demo/ckpt/ar+nar/fp32.sft",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    speaker_arguments(parser)
    parser.add_argument("--port", type=_port, default=7860, help="(%(default)s)")
    args = parser.parse_args(argv)
    from vall_e.codecs.codec import CodecUnavailable

    try:
        page(load_speaker(args)).launch(server_name="127.0.0.1", server_port=args.port, share=False, footer_links=[])
    except (ValueError, OSError, CodecUnavailable, MissingGradio) as e:
        print(f"vall-e-webui: {e}", file=sys.stderr)
        return 1
    return 0


def _port(text: str) -> int:
    """A port that a page can be served on.

    Raises:
        argparse.ArgumentTypeError: there is no such port.
    """
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, found {text!r}")
    return int(text)


class MissingGradio(ImportError):
    """The package that serves the page is not installed."""


def page(speaker: Speaker) -> gradio.Blocks:
    """The page, ready to be launched. Requests are answered one after the other.

    Raises:
        MissingGradio: with the line that installs it.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would report its use over the network
    try:
        import gradio as gr
    except ImportError as e:
        raise MissingGradio("the page needs gradio: pip install 'vall-e[webui]'") from e

    from vall_e.audio import to_int16
    from vall_e.espeak import EspeakUnavailable
    from vall_e.synthesis import Request

    def speak(
        text: str, reference: str | None, language: str, split: str, rolling: bool, seed: float, *options: float | None
    ) -> tuple[int, np.ndarray]:
        given = {
            name.replace("-", "_"): kind(value)
            for (name, kind, _), value in zip(OPTIONS, options, strict=True)
            if value is not None
        }
        place = None if reference is None else Path(reference)
        request = Request(text, place, language, split, rolling, seed=int(seed), options=given)  # type: ignore[arg-type]
        try:
            return speaker.sample_rate, to_int16(speaker.speak(request))
        except (ValueError, OSError, EspeakUnavailable) as e:
            raise gr.Error(str(e), duration=None, print_exception=False) from e

    languages = speaker.voice.model.spec.languages
    with gr.Blocks(title="VALL-E", analytics_enabled=False) as blocks:
        gr.Markdown("## VALL-E")
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(label="text", lines=4)
                reference = gr.Audio(label="a recording of the voice (uploaded or spoken)", type="filepath")
                language = gr.Dropdown(list(languages), value=languages[0], label="language")
                seed = gr.Number(0, label="seed", precision=0)
                split = gr.Radio(["sentence", "line", "none"], value="sentence", label="spoken at a time")
                rolling = gr.Checkbox(True, label="prompt a sentence with the one before")
                with gr.Accordion("synthesis: an empty field is as the model was evaluated", open=False):
                    options = [gr.Number(None, label=name, info=what) for name, _, what in OPTIONS]
                button = gr.Button("speak", variant="primary")
            with gr.Column():
                heard = gr.Audio(label="speech", autoplay=True)
        inputs: list[Any] = [text, reference, language, split, rolling, seed, *options]
        button.click(speak, inputs, heard, api_name="speak", concurrency_limit=1)
    return blocks


if __name__ == "__main__":
    sys.exit(main())
