"""The page, served and asked over its own protocol."""

import sys

import pytest
from vall_e import audio
from vall_e.cli import webui
from vall_e.cli.synthesize import OPTIONS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(prepared):
    gradio_client = pytest.importorskip("gradio_client")
    from vall_e.synthesis import Speaker
    from vall_e.weights import load_weights

    page = webui.page(Speaker(load_weights(prepared / "ckpt/ar+nar/fp32.sft")))
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    assert url.startswith("http://127.0.0.1:")
    yield gradio_client.Client(url, verbose=False)
    page.close()


def ask(client, text, reference, *options):
    rest = [None] * (len(OPTIONS) - len(options))
    return client.predict(text, reference, "en", "sentence", True, 0, *options, *rest, api_name="/speak")


def test_it_speaks_and_says_what_is_wrong(client, prepared):
    from gradio_client import handle_file

    reference = next(prepared.glob("corpus/en/*/*.wav"))
    spoken = ask(client, "A word.", handle_file(reference), 1.0)  # the first option is the temperature
    assert len(audio.read_audio(spoken, 24000)) > 2400
    with pytest.raises(Exception, match="there is nothing to say"):
        ask(client, "", None)


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(webui.MissingGradio, match=r"pip install 'vall-e\[webui\]'"):
        webui.page(None)


def test_arguments_that_name_no_weights(capsys):
    assert webui.main([]) == 1
    assert "--model" in capsys.readouterr().err
    assert webui.main(["--model", "missing.sft"]) == 1
    assert "missing.sft" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http"])
def test_a_port_that_cannot_be(port, capsys):
    with pytest.raises(SystemExit, match="2"):
        webui.main(["--model", "x.sft", "--port", port])
    assert f"expected a port from 1 to 65535, found '{port}'" in capsys.readouterr().err
