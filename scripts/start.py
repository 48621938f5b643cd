"""Start a program of this folder for a rule: as a copy of a process that has its libraries.

The program runs in this process where there is no other (src/loraudit/base/forks.py), or where this
one has the libraries already.
"""

import os
import runpy
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # fetched folders only: no look at the hub

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # the code beside this file

from loraudit.base.forks import run_as_copy

ANALYSIS = ["pandas", "pyarrow.parquet", "scipy.stats", "statsmodels.stats.multitest"]
TRAINING = [
    *("torch", "accelerate.commands.launch", "peft", "sklearn.metrics", *ANALYSIS),
    *("transformers.models.bert.modeling_bert", "transformers.models.roberta.modeling_roberta"),
]
DRAWING = [*ANALYSIS, "matplotlib.pyplot"]
FORGETTING = ("forgetting", "language_loss")
LIBRARIES = {
    **dict.fromkeys(("launch", "crosscheck", "subspace", *FORGETTING), TRAINING),
    **{"collect": ANALYSIS, "tables": ANALYSIS, "figures": DRAWING, "report": DRAWING},
}
"""What takes long to import of what each program imports."""

words = sys.argv[1:]
libraries = LIBRARIES[Path(words[0]).stem]
ready = {name.partition(".")[0] for name in libraries} <= sys.modules.keys()
status = None if ready else run_as_copy(words, libraries)
if status is not None:
    sys.exit(status)
sys.argv = words
runpy.run_path(words[0], run_name="__main__")
