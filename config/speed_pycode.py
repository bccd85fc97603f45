# Python code with the recipe of the speed_* files, 123M parameters; for a GPU.
#     python data/pycode/prepare.py --installed --vocab_size=50000 && python train.py config/speed_pycode.py
# To use less memory: batch_size = 8 and gradient_accumulation_steps = 16.

out_dir = "out-speed-pycode"
dataset = "pycode"

max_minutes = 60
max_iters = 1000000
eval_interval = 500
eval_iters = 100
log_interval = 10
always_save_checkpoint = False  # keep the best

# 32 x 1,024 x 4 = 131,072 tokens per step
gradient_accumulation_steps = 4
batch_size = 32
block_size = 1024

n_layer = 12
n_head = 12
n_embd = 768
pos = "rope"
qk_norm = True
init = "kaiming"

optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 3e-3
schedule = "linear"
min_lr = 0.0
warmup_iters = 100
beta2 = 0.95

wandb_project = "pycode"
wandb_run_name = "speed"
