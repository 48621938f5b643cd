"""Tokenise a fetched task for a fetched model, once for all runs, which map the files into memory.

The folder holds a file <split>.arrow per split, with one row per example in the split's order: row,
label, ids, and types where the tokenizer gives segment ids. manifest.json is written last.

Where text is to be predicted, `given` is how many tokens at the start of a row carry no loss, and
the label is how many tokens do. The first token of a row never carries loss, since nothing stands
before it, and a prompt's tokens don't.
"""

import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa

from loraudit.base.errors import UserError
from loraudit.base.files import folder_atomic, read_json, sha256, write_json
from loraudit.base.progress import progress

PART = 5000
"""Rows that are tokenised at a time."""


def tokenise(data: Path, model: Path, max_length: int, out: Path) -> None:
    """Write the tokens of every split of a fetched task.

    Args:
        data: folder of the fetched task.
        model: folder of the fetched model.
        max_length: the most tokens of an example. Longer ones are cut; of a pair, the longer text
            is cut first.
        out: the folder to write.

    Raises:
        UserError: there is no tokenizer that can be used, as `load_tokenizer` says, or a row has no
            token left that carries loss.
    """
    tokenizer = load_tokenizer(model)
    manifest = read_json(Path(data) / "manifest.json")
    begin = begin_ids(tokenizer) if manifest["kind"] == "causal_lm" else None
    with folder_atomic(out) as folder:
        for split in manifest["splits"]:
            table = pd.read_parquet(Path(data) / f"{split}.parquet")
            columns = texts(table)
            tokens: dict[str, list] = {}
            starts = range(0, len(table), PART)
            for start in progress(starts, len(starts), f"tokenise {split}"):
                part = [column[start : start + PART] for column in columns]
                made = (
                    tokenizer(*part, truncation=True, max_length=max_length)
                    if begin is None
                    else to_predict(tokenizer, part, max_length, begin)
                )
                for name, values in made.items():
                    tokens.setdefault(name, []).extend(values)
            if begin is not None:
                where = f"{Path(data).name}, split {split!r}"
                table = table.assign(label=_counted(tokens, table, max_length, where))
            _write(folder / f"{split}.arrow", table, tokens)
        write_json(
            folder / "manifest.json",
            {
                "max_length": max_length,
                "pad_id": tokenizer.pad_token_id,
                "splits": {split: facts["sha256"] for split, facts in manifest["splits"].items()},
                "absent": manifest["absent"],
                "files": {file.name: sha256(file) for file in sorted(folder.glob("*.arrow"))},
            },
        )


def load_tokenizer(model: Path):
    """Load a model's tokenizer, without running any code that comes with it.

    Tokenizers of decoders often have no padding token. The token that ends a text then fills short
    rows, and this is said on standard error. It changes nothing that a model reads: what is filled
    in is masked, and a head that reads the last token skips it.

    Raises:
        UserError: there is no tokenizer, or it needs code of its own, or has no token to fill with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{model}: no tokenizer that can be read without running its code: {reason}"
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{model}: the tokenizer has no padding token, and no end-of-text token instead"
            )
        tokenizer.pad_token = tokenizer.eos_token
        print(
            f"{model}: the tokenizer has no padding token; its end-of-text token "
            f"{tokenizer.eos_token!r} ({tokenizer.eos_token_id}) fills short rows",
            file=sys.stderr,
        )
    return tokenizer


def begin_ids(tokenizer) -> list[int]:
    """Return the token that a tokenizer puts before every text, if it does; GPT-2's does not."""
    first = tokenizer("")["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def to_predict(
    tokenizer, columns: list[list[str]], max_length: int, begin: list[int]
) -> dict[str, list]:
    """Tokenise texts that are to be predicted, or prompts and completions.

    A prompt and its completion are tokenised apart, so that no token lies across the two, and
    joined as they are: the white space between them has to be in one of them. The token that ends a
    text, if the tokenizer has one, follows a completion, so that a model learns where to stop; a
    text is taken as it stands.

    Args:
        tokenizer: a tokenizer of transformers.
        columns: the texts, or the prompts and the completions.
        max_length: the most tokens of a row; what comes later is cut.
        begin: tokens that go before every row.

    Returns:
        `input_ids`, and `given`, the number of tokens at the start of each row without loss.
    """
    parts = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in columns]
    pair = len(parts) == 2
    end = [tokenizer.eos_token_id] if pair and tokenizer.eos_token_id is not None else []
    before = [[*begin, *prompt] if pair else begin for prompt in parts[0]]
    rows = [[*first, *own, *end] for first, own in zip(before, parts[-1], strict=True)]
    return {
        "input_ids": [row[:max_length] for row in rows],
        "given": [max(1, len(first)) for first in before],
    }


def _counted(
    tokens: dict[str, list], table: pd.DataFrame, max_length: int, where: str
) -> list[int]:
    """Return how many tokens of each row carry loss; refuse a row without one.

    Raises:
        UserError: as said; it names the first such row.
    """
    lengths = zip(tokens["input_ids"], tokens["given"], strict=True)
    counts = [len(ids) - given for ids, given in lengths]
    lost = [place for place, count in enumerate(counts) if count < 1]
    if lost:
        row, given = table.row.iloc[lost[0]], tokens["given"][lost[0]]
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        cut = f"its {given} tokens of prompt leave no room for the completion: max_length is"
        reason = (
            f"{cut} {max_length}, raise it or leave the row out"
            if given >= max_length
            else "it is a single token, with nothing before it to predict it from; leave it out"
        )
        raise UserError(f"{where}: row {row}{more} has no token to predict: {reason}")
    return counts


def texts(table: pd.DataFrame) -> list[list[str]]:
    """Return the one or two text columns of a fetched split as lists, for a tokenizer."""
    return [table[name].tolist() for name in ("text_1", "text_2") if name in table]


def _write(file: Path, table: pd.DataFrame, tokens: dict) -> None:
    """Write one split as an Arrow file of a single batch, so that it can be mapped as a whole."""
    columns = {
        "row": pa.array(table.row),
        "label": pa.array(table.label),
        "ids": pa.array(tokens["input_ids"], pa.list_(pa.int32())),
    }
    if "given" in tokens:
        columns["given"] = pa.array(tokens["given"], pa.int32())
    if "token_type_ids" in tokens:
        columns["types"] = pa.array(tokens["token_type_ids"], pa.list_(pa.int8()))
    batch = pa.record_batch(columns)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
