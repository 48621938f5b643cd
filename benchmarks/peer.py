"""Train one run with PEFT and the Hugging Face Trainer, the peer that a study is compared with.

Trains on the fetched snippets with the quickstart's settings, the Trainer's own padding and its
order of rows. Prints one JSON line: the seconds to the end of the first optimizer step. Started by
runs.py.
"""

import argparse
import json
import os
import time

import datasets
import peft
import transformers

MODEL, DATA = "resources/models/minilm", "resources/tasks/snippets"


class Clock(transformers.TrainerCallback):
    """Takes the time of the first step's end."""

    first = 0.0

    def on_step_end(self, args, state, control, **_):
        """Note the time."""
        self.first = self.first or time.time()


def load(split: str, rows: int, tokenizer, padding: str) -> datasets.Dataset:
    """Tokenise the first rows of a split, padded to 128 or not at all."""
    table = datasets.Dataset.from_parquet(f"{DATA}/{split}.parquet").select(range(rows))
    how = {"truncation": True, "max_length": 128}
    how["padding"] = "max_length" if padding == "fixed" else False
    return table.map(
        lambda batch: {**tokenizer(batch["text_1"], **how), "labels": batch["label"]},
        batched=True,
        remove_columns=table.column_names,
    )


def model_of(method: str, rank: int, targets: list[str]):
    """Load the classifier and make it trainable by one of the methods."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(MODEL)
    if method == "lora":
        config = peft.LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=16, target_modules=targets)
        return peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method == "full" or name.startswith("classifier"))
    return model


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=("lora", "full", "head"), default="lora")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="query,value")
    parser.add_argument("--padding", choices=("dynamic", "fixed"), default="dynamic")
    parser.add_argument("--order", choices=("random", "group_by_length"), default="random")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rows", type=int, nargs=2, required=True, help="training, validation")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    data = {
        split: load(split, rows, tokenizer, given.padding)
        for split, rows in zip(("train", "validation"), given.rows, strict=True)
    }
    clock = Clock()
    trainer = transformers.Trainer(
        model=model_of(given.method, given.rank, given.targets.split(",")),
        args=transformers.TrainingArguments(
            given.out,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=32,
            num_train_epochs=1,
            train_sampling_strategy=given.order,
            torch_compile=given.compile,
            learning_rate=1e-3,
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.evaluate()
    print(json.dumps({"start": clock.first - float(os.environ["LORAUDIT_BENCH_STARTED"])}))


main()
