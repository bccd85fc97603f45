"""The notebook runs from a clone to a sample with small limits, and when it is run again, training goes on."""

import shutil
import sys

import pytest
from test_docs import ROOT, clone

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
LIMITS = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=2 --eval_iters=1 --device=cpu"


def execute(folder, **parameters) -> str:
    """Runs all cells in `folder`, with other values in the first cell of code; returns all that they print."""
    notebook = nbformat.read(ROOT / "notebooks/train.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in parameters.items():
        assert f"{name} = " in first.source
        first.source += f"\n{name} = {value!r}"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.skipif(sys.platform == "win32", reason="the cells start programs as a POSIX shell does")
def test_the_notebook_trains_goes_on_and_exports(tmp_path, monkeypatch):
    project = tmp_path / "gpt"  # as if git had just made it
    project.mkdir()
    clone(project)
    (project / "books").rename(tmp_path / "my books")
    (project / "requirements.txt").write_text("torch==0\n", encoding="utf-8")  # all is installed; torch is left alone
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    texts = {"TEXT": "my books", "KEEP": "kept here"}
    first = execute(tmp_path, **texts, EPOCHS=100, OPTIONS=f"{LIMITS} --max_iters=4 --lr_decay_iters=100")
    assert "4 steps" in first and "error" not in first
    shutil.rmtree(project / "data/notebook")  # the session's disk is gone, the kept folder is not
    second = execute(tmp_path, **texts, EPOCHS=100, OPTIONS=f"{LIMITS} --max_iters=6 --lr_decay_iters=100")
    assert "6 steps" in second and "resum" in second and "error" not in second
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "kept here/hf-notebook")
    assert model.config.model_type == "llama" and model.config.hidden_size == 16


def test_the_notebook_opened_in_its_own_folder_uses_that_project_and_a_placeholder_is_no_address(tmp_path):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "notebooks", project / "data", elsewhere):
        folder.mkdir(parents=True)
    (project / "train.py").touch()
    (project / "requirements.txt").write_text("torch==0\n", encoding="utf-8")
    notebook = nbformat.read(ROOT / "notebooks/train.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    notebook.cells.append(nbformat.v4.new_code_cell("print(f'{Path.cwd()}, {START}')"))
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(project / "notebooks")}})
    client.execute()
    assert notebook.cells[-1].outputs[0]["text"] == f"{project}, {project}\n"
    assert not list(project.glob("requirements-*"))  # quickstart.py would install again
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(elsewhere)}})
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="the first cell needs the project's address"):
        client.execute()


def test_the_notebook_keeps_no_outputs():
    notebook = nbformat.read(ROOT / "notebooks/train.ipynb", as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
