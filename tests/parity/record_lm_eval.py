"""Writes lm_eval_0.4.13.json: what lm-eval says about the questions of lm_eval_data.py, for test_lm_eval.py on machines
without it.

    .venv/bin/python -m pip install --no-deps --target .venv/lm-eval -r launch/requirements-lm-eval.txt
    .venv/bin/python tests/parity/record_lm_eval.py REALDATA
"""

import json
import pathlib
import sys
import tempfile

from lm_eval_data import QUESTIONS, RECORD, Questions


def main(realdata):
    with tempfile.TemporaryDirectory() as folder:
        calls = [call for call in QUESTIONS if not call.startswith("real")]
        answers = Questions(pathlib.Path(folder), pathlib.Path(realdata)).ask_lm_eval(calls)
    for call in ("choices0", "gsm8k"):
        for task, answer in answers[call].items():
            for metric, value in answer["metrics"].items():
                if "stderr" not in metric:
                    assert 0 < value < 1 or metric == "sample_len", f"{call}: {task}: {metric} is {value}, which tells nothing"
    lines = [f" {json.dumps(call)}: {{\n" + ",\n".join(f"  {json.dumps(task)}: {json.dumps(answer)}" for task, answer in tasks.items())
             + "}" for call, tasks in answers.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
