# Python code: 45 million parameters on the standard library, or better, on all installed packages; for a GPU.
#     python data/pycode/prepare.py --installed && python train.py config/train_pycode.py
# Two minutes on a CPU instead: config/quickstart.py.

out_dir = "out-pycode"
dataset = "pycode"

eval_interval = 250
eval_iters = 100
log_interval = 10
always_save_checkpoint = False  # keep the best

# 16 x 512 x 4 = 32,768 tokens per step
gradient_accumulation_steps = 4
batch_size = 16
block_size = 512

n_layer = 9
n_head = 8
n_embd = 512
dropout = 0.1  # ten epochs are many for the standard library alone
pos = "rope"
qk_norm = True

optimizer = "muon"
learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 100
max_epochs = 10
max_iters = 20000  # whichever comes first

wandb_project = "pycode"
wandb_run_name = "bpe"
