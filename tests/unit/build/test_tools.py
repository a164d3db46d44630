"""What of the tools needs none of their libraries: files that are read, refused and carried over."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tuneyard.build.tools import calibration, gguf
from tuneyard.build.tools.calibration import chosen, read_lines
from tuneyard.build.tools.files import carry_over, refuse_code, refuse_quantized
from tuneyard.build.tools.reporting import Report, ToolError
from tuneyard.build.tools.texts import PROMPTS


def model(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_a_model_whose_reading_runs_code_is_refused(tmp_path: Path) -> None:
    refuse_code(model(tmp_path / "sound"))
    with pytest.raises(ToolError, match="auto_map"):
        refuse_code(model(tmp_path / "remote", auto_map={"AutoModel": "x.Y"}))
    (model(tmp_path / "pickle") / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(ToolError, match="no weights in safetensors"):
        refuse_code(tmp_path / "pickle")


def test_few_bits_are_not_made_fewer(tmp_path: Path) -> None:
    refuse_quantized(model(tmp_path / "whole"), "quantise")
    with pytest.raises(ToolError, match="quantised already: quantise its unquantised original"):
        refuse_quantized(model(tmp_path / "few", quantization_config={"bits": 4}), "quantise")


def test_all_but_weights_and_configuration_is_carried_over(tmp_path: Path) -> None:
    source = model(tmp_path / "source")
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "tuneyard-build.json", "model-1.gguf"):
        (source / name).write_text(name)
    target = tmp_path / "target"
    target.mkdir()
    (target / "tokenizer.json").write_text("what a library wrote")
    carry_over(source, target)
    assert {p.name: p.read_text() for p in target.iterdir()} == {
        "tokenizer.json": "tokenizer.json",
        "chat_template.jinja": "chat_template.jinja",
    }


def test_lines_of_several_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"prompt": "two"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n')
    assert read_lines(tmp_path) == [{"text": "one"}, {"prompt": "two"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"text": "a"}\nnot json\n', "line 2 of the calibration data is no JSON"),
        ('{"text": "a", "prompt": "b"}', "exactly one of text, prompt and messages"),
        ('{"messages": "hello"}', "messages that are no list"),
        ("[1]", "exactly one of"),
    ],
)
def test_calibration_data_that_cannot_be_read_name_the_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "texts.jsonl").write_text(text)
    with pytest.raises(ToolError, match=said):
        read_lines(tmp_path / "texts.jsonl")


def test_calibration_lines_are_drawn_alike_each_time() -> None:
    lines = [{"text": str(n)} for n in range(100)]
    drawn = chosen(lines, 5, seed=0)
    assert drawn == chosen(lines, 5, seed=0) != chosen(lines, 5, seed=1)
    assert [int(line["text"]) for line in drawn] == sorted(int(line["text"]) for line in drawn)
    assert chosen(lines, 100, seed=0) == lines


def test_a_model_sees_messages_by_its_own_template() -> None:
    class Tokenizer:
        chat_template: str | None = "own"

        def apply_chat_template(self, messages: object, chat_template: str | None, tokenize: bool) -> str:
            return f"{messages} {chat_template} {tokenize}"

    line = {"messages": [{"role": "user"}]}
    assert calibration.as_text(line, Tokenizer()) == "[{'role': 'user'}] None False"
    assert calibration.as_text({"prompt": "as it is"}, Tokenizer()) == "as it is"


def test_without_llama_quantize_the_types_that_go_without_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(gguf.QUANTIZER, raising=False)
    with pytest.raises(ToolError, match=r"no llama-quantize, which makes Q4_K_M: .* one of F32, F16, BF16, Q8_0"):
        gguf.quantizer("Q4_K_M")


def test_prompts_are_fifty_and_all_different() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) == 50


def test_lines_of_a_report() -> None:
    file = io.StringIO()
    report = Report(file)
    report.doing("weights", 1, 3)
    report.doing("weights", 2, 3)  # too soon to be told
    report.doing("weights", 3, 3)
    report.result({"checks": {}})
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        {"doing": "weights", "percent": 33.3},
        {"doing": "weights", "percent": 100.0},
        {"result": {"checks": {}}},
    ]
