# C and C++ as bytes, for code completion at the terminal (complete.py): 85 million parameters; for a GPU.
#     python data/cppcode/prepare.py && python train.py config/train_cppcode_bytes.py

out_dir = "out-cppcode"
dataset = "cppcode"
sampling = "line"  # windows start at a line, after a BOS, and end with their file

eval_interval = 500
eval_iters = 100
log_interval = 10
always_save_checkpoint = False  # keep the best

# 16 x 512 x 8 = 65,536 bytes per step; if memory runs out, 8 and gradient_accumulation_steps = 16
gradient_accumulation_steps = 8
batch_size = 16
block_size = 512

n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.1  # for PyTorch's headers, which are read 18 times; with ten times as much text, 0
pos = "rope"
qk_norm = True

optimizer = "muon"
learning_rate = 2e-3
min_lr = 0.0
warmup_iters = 100
compute = 56000  # 3.4e17 operations: 0.66 billion bytes in 10,000 steps for this size; hours on a gaming GPU
max_iters = 1000000

wandb_project = "cppcode"
wandb_run_name = "bytes"
