"""How the tests of all folders are dealt out to the workers of pytest-xdist."""

import os

import pytest

# What these tests start computes on the CPU, also where there is a card: several share the machine, ranks would share one
# card, and sums have another order there. The C++ tests look at cards.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Files that take long begin first, the longest before the others: begun last, one worker would end long after the rest.
LONGEST_FIRST = (
    "test_quickstart.py", "test_faults.py", "test_emulated_cards.py", "test_memory.py", "test_traffic.py", "test_nodes.py",
    "test_ranks.py", "test_tokenizers.py", "test_chat_template.py", "test_cuda_registers.py", "test_docs.py", "test_transformers_4_57.py",
    "test_train_parity.py", "test_eval_benchmarks.py", "test_compare.py", "test_command_errors.py", "test_background_saves.py",
    "test_export.py", "test_train_ranks.py", "test_stories.py", "test_analyze.py", "test_generate_command.py",
    "test_diff_command.py", "test_export_command.py", "test_bench.py", "test_lm_eval.py", "test_torchrun.py",
    "test_train_command.py", "test_data_command.py", "test_launchers.py", "test_report.py")
# Files that share what takes long to make.
SHARED = {"test_tokenizers.py": "tokenizers", "test_chat_template.py": "tokenizers"}


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items):
    """The tests of a file go to one worker, one after another: what they share is made once. A mark of a test's own, such
    as large-memory, goes before: two marks would make a third group."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(SHARED.get(item.path.name, item.path.stem)))
