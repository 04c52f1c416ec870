"""An exported model is asked as the data that it was trained on were prepared, and stops where they end."""

import json
import shutil
from pathlib import Path

import pytest
from support.training.preparing import CHATML, END, MARKED, prepared, texts, tokenizer_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from pipelinejob.contract.trained import Trained
from pipelinejob.spec.job import Data, DecoderModel, Lora, Model, Training
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.data.prepare.tokenizer import load_tokenizer
from pipelinejob_trainer.export.export import main
from pipelinejob_trainer.export.request import Request
from support.training.saved_models import moved, saved, whole

SIZES = {"vocab_size": 2000, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CHAT = [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "One."}]
OTHER_END = 7


def base_model(folder: Path, *, template: str | None = None) -> Model:
    """Return a folder's model, whose generation stops at another token than its data's."""
    config = LlamaConfig(**SIZES, **HEADS, bos_token_id=None, eos_token_id=OTHER_END, pad_token_id=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer_folder(folder, template=template)
    return Model(hugging_face=HuggingFaceModel(path=str(folder)), num_layers=4)


def chats(tmp_path: Path, template: str) -> Path:
    tokenizer = tokenizer_folder(tmp_path / "own-tokenizer", template=template)
    prepared(tmp_path / "chats", tokenizer, [CHAT], column="messages", messages_column="messages")
    return tmp_path / "chats"


def exported(model: Model, data: Path, tmp_path: Path, lora: Lora | None = None) -> Path:
    given = Data(tokens=({"path": str(data)},), sequence_length=16)
    job = Trained(model=model, data=given, training=Training(steps=1, seed=3, lora=lora))
    saved(tmp_path / "checkpoints", moved(whole(job)), 2)
    to = tmp_path / "out"
    main(job, Request(checkpoint=tmp_path / "checkpoints", to=to, adapters_only=lora is not None))
    return to


def stops_of(folder: Path) -> object:
    return GenerationConfig.from_pretrained(folder).eos_token_id


@pytest.mark.parametrize("its_own", [None, CHATML])
def test_a_model_is_asked_by_the_chat_template_of_its_data(
    tmp_path: Path, its_own: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = base_model(tmp_path / "model", template=its_own)

    to = exported(model, chats(tmp_path, MARKED), tmp_path)

    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.get_chat_template() == MARKED
    assert "the chat template is that of the data" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "model").chat_template == its_own  # is left alone


def test_generation_stops_where_what_it_was_trained_on_ends(tmp_path: Path) -> None:
    to = exported(base_model(tmp_path / "model"), chats(tmp_path, CHATML), tmp_path)

    end = AutoTokenizer.from_pretrained(to).convert_tokens_to_ids(END)
    assert stops_of(to) == [OTHER_END, end]


def test_adapters_alone_bring_the_template_too(tmp_path: Path) -> None:
    to = exported(base_model(tmp_path / "model"), chats(tmp_path, CHATML), tmp_path, Lora(targets=("q_proj",)))

    assert load_tokenizer(to).get_chat_template() == CHATML


def test_where_the_folder_says_the_same_nothing_is_changed(tmp_path: Path) -> None:
    model = base_model(tmp_path / "model", template=CHATML)
    end = load_tokenizer(tmp_path / "model").convert_tokens_to_ids(END)
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": [end, 9], "top_k": 5}))

    to = exported(model, chats(tmp_path, CHATML), tmp_path)

    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (to / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name


def test_a_built_in_model_comes_with_the_tokenizer_of_its_data(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path / "own-tokenizer")
    prepared(tmp_path / "texts", tokenizer, texts(2))
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "feed_forward_size": 48, "vocabulary_size": 2000}

    to = exported(Model(decoder=DecoderModel(**sizes)), tmp_path / "texts", tmp_path)

    read = AutoTokenizer.from_pretrained(to)
    assert read.decode(read("Say one.")["input_ids"]) == "Say one."
    assert stops_of(to) == read.convert_tokens_to_ids(END)


def test_data_that_are_not_here_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = base_model(tmp_path / "model", template=CHATML), chats(tmp_path, MARKED)
    shutil.rmtree(data)

    to = exported(model, data, tmp_path)

    assert load_tokenizer(to).get_chat_template() == CHATML
    assert f"{data}, which it was trained on, is not here" in capsys.readouterr().out
